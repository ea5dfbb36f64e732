"""What a checkpoint is shared with: a snapshot, a model card, a push now, or pushes while a run goes on."""
