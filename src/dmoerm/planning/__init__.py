"""Time, memory and cost of a run before it starts, counted from shapes. No torch is imported here.

work.py      operations of a prompt with its responses      memory.py    bytes of weights, training and the cache
recipe.py    what a config trains and scores                machines.py  accelerators: rate, memory, price
estimate.py  from these to hours, gigabytes, dollars     measured.py  how far they were off where they were measured
"""

from .estimate import CostEstimate, RunPlan, Workload, make_plan
from .machines import ACCELERATORS, Accelerator, Machine, parse_machine
from .measured import ESTIMATED_BY_MEASURED, measured_line
from .memory import cached_bytes, checkpoint_bytes, scoring_bytes, training_bytes
from .recipe import SHAPES, Recipe, check_shape, read_shape
from .work import BackboneShape, Work, flops, layer_flops, plain_flops

__all__ = [
    "ACCELERATORS",
    "ESTIMATED_BY_MEASURED",
    "SHAPES",
    "Accelerator",
    "BackboneShape",
    "CostEstimate",
    "Machine",
    "Recipe",
    "RunPlan",
    "Work",
    "Workload",
    "cached_bytes",
    "check_shape",
    "checkpoint_bytes",
    "flops",
    "layer_flops",
    "make_plan",
    "measured_line",
    "parse_machine",
    "plain_flops",
    "read_shape",
    "scoring_bytes",
    "training_bytes",
]
