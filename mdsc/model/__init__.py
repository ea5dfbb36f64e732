"""The network: a gene-conditioned backbone, DiT or latent, with a cell-state pathway."""
