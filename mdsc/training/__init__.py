"""The trainer. The only package that imports accelerate and wandb."""
