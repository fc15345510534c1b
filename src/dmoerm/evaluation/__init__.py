"""Evaluation: consistency with people and its intervals, what the router and the experts know."""

from .results import Results, read_results, write_results
from .run import evaluate

__all__ = ["Results", "evaluate", "read_results", "write_results"]
