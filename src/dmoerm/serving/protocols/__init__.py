"""The protocols that clients speak: every module of this package with a `router` is found.

A protocol turns a request's body into queries for `Service.score`, or into prompts and responses for
`Service.score_texts`, and the scores into its answer.
"""

from __future__ import annotations

import importlib
import pkgutil

from fastapi import APIRouter


def find_routers() -> list[APIRouter]:
    """Import all modules of this package, by name, and return their routers."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return [module.router for module in modules if hasattr(module, "router")]
