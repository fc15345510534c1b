"""Training: labeled examples, one `fit` for every trained step, exact heads, the phases, the run."""

from .processes import check_sharding, device, is_main, move_to_device, rank, sharded
from .run import load_run, open_cache, train
from .steps import Run, finished_steps

__all__ = [
    "Run",
    "check_sharding",
    "device",
    "finished_steps",
    "is_main",
    "load_run",
    "move_to_device",
    "open_cache",
    "rank",
    "sharded",
    "train",
]
