"""Register DMoERM with `AutoModelForSequenceClassification` on `import dmoerm`, without importing torch.

`dmoerm.model` registers itself in transformers' auto mappings when it is imported. The mappings are in `modeling_auto`;
an import hook waits until that module is imported and then imports `dmoerm.model`.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_AUTO_MODULE = "transformers.models.auto.modeling_auto"
_MODEL = f"{__package__}.model"


def when_transformers_loads() -> None:
    """Import `dmoerm.model` now if transformers' auto mappings are loaded, otherwise as soon as they are."""
    if _AUTO_MODULE in sys.modules:
        importlib.import_module(_MODEL)
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _AUTO_MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        if _MODEL not in sys.modules:  # otherwise the import of dmoerm.model is running and loads transformers
            importlib.import_module(_MODEL)
