"""Training: batches of ordered pairs, one `fit` for every step, the phases, the run."""

from .run import train
from .steps import Run

__all__ = ["Run", "train"]
