"""mdsc: a masked discrete-diffusion foundation model of single-cell gene expression.

    import mdsc
    checkpoint = mdsc.load_checkpoint("runs/demo")

What is named here is imported when it is first asked for, so that `mdsc --help` needs no torch. Importing `mdsc.model`
also registers the model with transformers' AutoConfig and AutoModel.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdsc.model import MdscConfig, MdscModel, build_model

__version__ = "0.1.0"
__all__ = ["MdscConfig", "MdscModel", "__version__", "build_model"]

_HOMES = {"MdscConfig": "mdsc.model", "MdscModel": "mdsc.model", "build_model": "mdsc.model"}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'mdsc' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
