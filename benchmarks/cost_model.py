"""Count the operations and bytes of scoring from the backbone's shape, b, k, N, P and R.

    b  layers of the trunk, of L        P  tokens of the prompt
    k  experts of a task                N  responses to a prompt, R tokens each

Each token of the prompt and of each response passes through the trunk once, and through the branch once per expert and
once per plain pass of the branch (phase 1 and the general model). The last layer computes keys and values for all
tokens, and the rest for the last token of each response. `scale.py` fits the seconds per operation to measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Backbone:
    """A decoder's shape: layers, width d, feed-forward f, query and key/value heads of `head_dim` each."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int = 0

    @classmethod
    def of(cls, config: Any) -> Backbone:
        """Return the shape of a transformers configuration."""
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            head_dim,
            config.vocab_size,
        )

    @property
    def queries(self) -> int:
        """The width of all query heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """The width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def layer(self) -> int:
        """Weights of one layer's linear parts."""
        return self.width * (2 * self.queries + 2 * self.keys + 3 * self.feed_forward)

    @property
    def parameters(self) -> int:
        """Weights of all layers, and of the embedding."""
        return self.layers * self.layer + self.vocabulary * self.width


@dataclass(frozen=True)
class Work:
    """One prompt with its responses, under a model that branches at layer b.

    Attributes:
        plain: passes of the branch without an expert; 2 in the default recipe, 0 under the paper's aggregator.
        rank: of the LoRAs on the query and value projections.
    """

    prompt: int
    responses: int
    tokens: int
    trunk: int
    experts: int = 5
    plain: int = 2
    rank: int = 16

    @property
    def all_tokens(self) -> int:
        """P + N R."""
        return self.prompt + self.responses * self.tokens


def flops(backbone: Backbone, work: Work) -> dict[str, float]:
    """Return the operations by kind (linear, lora, attention); a multiplication with its addition counts as two."""
    top, passes = backbone.layers - work.trunk, work.experts + work.plain
    keys = 2 * backbone.width * backbone.keys
    whole = work.trunk + passes * (top - 1)  # layers that every token passes
    linear = work.all_tokens * (backbone.layer * whole + keys * passes) + work.responses * backbone.layer * passes
    adapters = work.rank * (2 * backbone.width + backbone.queries + backbone.keys)
    pairs = work.prompt**2 / 2 + work.responses * work.tokens * (work.prompt + work.tokens)
    last = work.responses * (work.prompt + work.tokens)
    return {
        "linear": 2.0 * linear,
        "lora": 2.0 * work.all_tokens * adapters * work.experts * top,
        "attention": 4.0 * backbone.queries * (pairs * whole + last * passes),
    }


def plain_flops(backbone: Backbone, work: Work) -> float:
    """Return the operations of one plain reward model, which reads the prompt again with every response."""
    length = work.prompt + work.tokens
    per_layer = 2.0 * length * backbone.layer + 4.0 * backbone.queries * length**2 / 2
    return work.responses * backbone.layers * per_layer


def checkpoint_bytes(backbone: Backbone, trunk: int, tasks: int, experts: int, rank: int, size: int = 4) -> float:
    """Return the size of a checkpoint: embedding, trunk, a branch for the general model and each task, adapters."""
    top = backbone.layers - trunk
    adapter = top * rank * (2 * backbone.width + backbone.queries + backbone.keys)
    shared = backbone.vocabulary * backbone.width + trunk * backbone.layer
    return size * (shared + (1 + tasks) * top * backbone.layer + tasks * experts * adapter)


def cached_bytes(backbone: Backbone, tokens: float, size: int = 2) -> float:
    """Return the size on disk of the trunk's activations of `tokens` tokens."""
    return tokens * backbone.width * size
