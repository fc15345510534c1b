"""Evaluation: consistency with people and its intervals, what the router and the experts know, the report, the card."""

from .card import write_card
from .report import write_report
from .results import Results, read_results, write_results
from .run import evaluate

__all__ = ["Results", "evaluate", "read_results", "write_card", "write_report", "write_results"]
