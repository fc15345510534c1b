"""Training: batches of ordered pairs, one `fit` for every step, the phases, the run."""

from .run import open_cache, train
from .steps import Run

__all__ = ["Run", "open_cache", "train"]
