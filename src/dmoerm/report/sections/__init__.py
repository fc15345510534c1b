"""One module for each kind of results; a module registers itself with `results_kinds.shows` when it is imported.

To show another kind, add one file here.
"""

import importlib
import pkgutil


def load_sections() -> None:
    """Import all modules of this package."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


load_sections()
