"""Evaluation: accuracy with people and its intervals, what the router and the experts know."""

from .measure import evaluate
from .results import Results, read_results, write_results

__all__ = ["Results", "evaluate", "read_results", "write_results"]
