"""Evaluation: accuracy with intervals over prompts, diagnostics, result files."""

from .measure import evaluate
from .results import Results, read_results, write_results

__all__ = ["Results", "evaluate", "read_results", "write_results"]
