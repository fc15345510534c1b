"""`AutoModelForSequenceClassification` knows DMoERM after `import dmoerm`, without that import paying for torch.

`dmoerm.model` enters itself into transformers' lists when it is imported. Those lists live in `modeling_auto`; this
waits until somebody imports that module, and then imports `dmoerm.model`.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_LISTS = "transformers.models.auto.modeling_auto"
_MODEL = f"{__package__}.model"


def when_transformers_loads() -> None:
    """Imports `dmoerm.model` now if transformers' lists are loaded, else as soon as they are."""
    if _LISTS in sys.modules:
        importlib.import_module(_MODEL)
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _LISTS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader) -> None:
        self.inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        if _MODEL not in sys.modules:  # else that import is what brought us here
            importlib.import_module(_MODEL)
