"""mdsc: a masked discrete-diffusion foundation model of single-cell gene expression."""

__version__ = "0.1.0"
