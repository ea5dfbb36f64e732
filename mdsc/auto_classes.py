"""transformers' AutoConfig and AutoModel learn of our models when they are imported, and not before.

Registering takes the classes, and these take torch and transformers: seconds that `mdsc --help` and each worker of a
data preparation would spend on nothing. So each of the two modules registers ours at the end of its own import.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType

# transformers' module -> ours that registers. AutoConfig alone must not lead to the network: transformers imports it
# while the base class of all networks is still in the making.
REGISTERS = {
    "transformers.models.auto.configuration_auto": ("mdsc.model.configuration", "mdsc.perturbation.configuration"),
    "transformers.models.auto.modeling_auto": ("mdsc.model.modeling", "mdsc.perturbation.head"),
}


def register_when_imported() -> None:
    """Register with what is imported already, and leave word for the rest."""
    for theirs, ours in REGISTERS.items():
        if theirs in sys.modules:
            _import_all(ours)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _import_all(modules: tuple[str, ...]) -> None:
    for module in modules:
        importlib.import_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path=None, target=None) -> importlib.machinery.ModuleSpec | None:
        if name not in REGISTERS:
            return None
        for finder in sys.meta_path:
            if not isinstance(finder, _Finder) and (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, REGISTERS[name])
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Loads as `loader` does, and then imports the modules that register."""

    def __init__(self, loader: importlib.abc.Loader, then: tuple[str, ...]):
        self._loader = loader
        self._then = then

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _import_all(self._then)

    def __getattr__(self, name: str):
        return getattr(self._loader, name)
