"""Evaluation: accuracy with intervals over prompts and seeds, diagnostics, result files.

Torch is imported at the first use of `evaluate`, so that results are read and shown without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .results import Results

if TYPE_CHECKING:
    from .measure import evaluate

__all__ = ["Results", "evaluate"]


def __getattr__(name: str) -> Any:
    if name == "evaluate":
        from .measure import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
