"""The network: a gene-conditioned DiT with a cell-state pathway."""

from mdsc.model.configuration import MdscConfig
from mdsc.model.initialisation import build_model
from mdsc.model.modeling import MdscModel, MdscOutput

__all__ = ["MdscConfig", "MdscModel", "MdscOutput", "build_model"]
