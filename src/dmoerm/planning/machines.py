"""Accelerators: dense bfloat16 rate, memory and price.

Rates and memory follow the vendor's data sheets, without sparsity; check them for your model of the card: NVIDIA H100
and H200 (SXM), A100 (SXM, 80 GB), B200 (HGX), L40S, L4, and the Ada architecture paper for the RTX 4090. Prices are
round figures for an hour on demand, assumed and not quoted from a provider; `--price` replaces them. `cpu` is the
machine of docs/scale.md: two cores of an AMD EPYC in float32, whose rate and cost of a layer call are measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..errors import ConfigError, did_you_mean

UTILIZATION = 0.4
"""Share of an accelerator's rate that large matrix products reach; assumed, not measured."""
LAYER_SECONDS = 3e-4
"""Seconds that a layer call takes on an accelerator however small it is: about 30 kernels of 10 µs each; assumed."""


@dataclass(frozen=True)
class Accelerator:
    """One GPU, or the CPU.

    Attributes:
        flops: dense bfloat16 operations per second.
        memory: bytes; None: unknown.
        price: dollars per hour.
        utilization: share of `flops` that is reached.
        layer_seconds: duration of a layer call of any size.
    """

    flops: float
    memory: float | None
    price: float
    utilization: float = UTILIZATION
    layer_seconds: float = LAYER_SECONDS


ACCELERATORS = {
    "H100": Accelerator(989e12, 80e9, 2.5),
    "H200": Accelerator(989e12, 141e9, 3.5),
    "B200": Accelerator(2250e12, 180e9, 5.5),
    "A100": Accelerator(312e12, 80e9, 1.8),
    "L40S": Accelerator(362e12, 48e9, 1.2),
    "L4": Accelerator(121e12, 24e9, 0.8),
    "RTX4090": Accelerator(165e12, 24e9, 0.5),
    "cpu": Accelerator(0.173e12, None, 0.0, utilization=1.0, layer_seconds=2.07e-3),
}


@dataclass(frozen=True)
class Machine:
    """A number of accelerators of one kind."""

    kind: str
    count: int
    accelerator: Accelerator

    def seconds(self, flops: float, layer_calls: float) -> float:
        """Return the duration of work that is divided evenly."""
        each = self.accelerator
        return (flops / (each.flops * each.utilization) + layer_calls * each.layer_seconds) / self.count

    def dollars(self, seconds: float) -> float:
        """Return the price of all accelerators for that duration."""
        return self.count * self.accelerator.price * seconds / 3600


def parse_machine(text: str, *, price: float | None = None, tflops: float | None = None) -> Machine:
    """Parse a machine such as `8xH100`, `L4` or `cpu`.

    Args:
        price: dollars per hour of one accelerator, instead of the table's.
        tflops: measured rate of one accelerator in 10¹² operations per second, instead of rate times utilization.

    Raises:
        ConfigError: the text or the kind is invalid.
    """
    match = re.fullmatch(r"(?:([1-9]\d{0,5})x)?([A-Za-z]\w*)", text)
    kinds = {name.lower(): name for name in ACCELERATORS}
    kind = kinds.get(match[2].lower()) if match else None
    if match is None or kind is None:
        hint = did_you_mean(match[2], ACCELERATORS) if match else ""
        known = f"write a number and one of {', '.join(ACCELERATORS)}, for example 8xH100"
        raise ConfigError("; ".join(filter(None, [f"--gpus: {text!r} is not a known machine", hint, known])))
    accelerator = ACCELERATORS[kind]
    if price is not None:
        accelerator = replace(accelerator, price=price)
    if tflops is not None:
        accelerator = replace(accelerator, flops=tflops * 1e12, utilization=1.0)
    return Machine(kind, int(match[1] or 1), accelerator)
