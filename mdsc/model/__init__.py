"""The network: a gene-conditioned DiT with a cell-state pathway. What is named here is imported when asked for."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdsc.model.configuration import MdscConfig
    from mdsc.model.initialisation import build_model
    from mdsc.model.modeling import MdscModel, MdscOutput

__all__ = ["MdscConfig", "MdscModel", "MdscOutput", "build_model"]

_HOMES = {
    "MdscConfig": "configuration",
    "MdscModel": "modeling",
    "MdscOutput": "modeling",
    "build_model": "initialisation",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'mdsc.model' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mdsc.model.{_HOMES[name]}"), name)
