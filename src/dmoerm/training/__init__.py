"""Training: batches of ordered pairs, one `fit` for every step, the phases, the run."""

from .grow import add_task, change_capability, export_tasks, merge_models, remove_tasks
from .processes import device, is_main, rank, sharded
from .run import load_run, open_cache, train
from .sharding import check_sharding, move_to_device
from .steps import Run, finished_steps
from .suspects import JudgedLabel, judge_labels

__all__ = [
    "JudgedLabel",
    "Run",
    "add_task",
    "change_capability",
    "check_sharding",
    "device",
    "export_tasks",
    "finished_steps",
    "is_main",
    "judge_labels",
    "load_run",
    "merge_models",
    "move_to_device",
    "open_cache",
    "rank",
    "remove_tasks",
    "sharded",
    "train",
]
