"""The network: a gene-conditioned DiT with a cell-state pathway."""
