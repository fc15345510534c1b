"""What a layer asks of attention, whichever form computes it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Stage = Literal["all", "responses", "last"]
"""The tokens that attend: all T, the responses' or the N responses' last ones. Their keys are all T tokens."""


class AttentionOptions(NamedTuple):
    """The options of a layer's attention.

    Attributes:
        scale: the factor of the logits; None: 1 / √c.
        dropout: the probability with which a weight is set to 0.
        window: the number of tokens, itself included, to which a token attends; None: all before it.
        softcap: the bound c of capped logits, c · tanh(logits / c); None: they are not capped.
        sinks: (H,), the logits of attention sinks; None: no sinks.
    """

    scale: float | None = None
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def special(self) -> bool:
        """Whether `scaled_dot_product_attention` cannot compute it."""
        return self.softcap is not None or self.sinks is not None
