"""From shards of counts to batches of cells: vocabulary, tokenizers, plan, gene sets, loader."""
