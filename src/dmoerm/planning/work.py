"""Count the operations of scoring and training from the backbone's shape, b, k, N, P and R.

    b  layers of the trunk, of L        P  tokens of the prompt
    k  experts of a task                N  responses to a prompt, R tokens each

Each token of the prompt and of each response passes through the trunk once, and through the branch once per expert with
a LoRA and once per plain pass of the branch (of the task's base and of the general model). The last layer computes
keys and values for all tokens, and the rest for the tokens that are pooled. `benchmarks/scale.py` fits the seconds per
operation to measurements.

A backbone that runs by its own forward has no trunk: each response is a padded row with its prompt, all of whose tokens
pass all layers and attend to all others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

EXPERTS_OF_A_LAYER = ("num_experts", "num_local_experts", "n_routed_experts")
"""Names in configurations of the number of a layer's feed-forward experts; without them, a layer has one such part."""


@dataclass(frozen=True)
class BackboneShape:
    """A decoder's shape: layers, width d, feed-forward f, query and key/value heads of `head_dim` each.

    Attributes:
        gated: the MLP has a gate, so three matrices; false: two.
    """

    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int = 0
    gated: bool = True

    @classmethod
    def of(cls, config: Any) -> BackboneShape:
        """Return the shape of a transformers configuration.

        Raises:
            AttributeError: it has no such fields, or layers of several widths.
        """
        if not isinstance(config.intermediate_size, int):
            raise AttributeError("intermediate_size differs by layer")
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            head_dim,
            config.vocab_size,
        )

    def fitted(self, linear: int) -> BackboneShape | None:
        """Return this shape or the one without a gate, whichever has that many weights in its linear parts.

        A configuration does not say whether the MLP has a gate. None: neither has that number.
        """
        shapes = (self, replace(self, gated=False))
        return next((shape for shape in shapes if shape.layers * shape.layer == linear), None)

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
        return self.width * (2 * self.queries + 2 * self.keys + (2 + self.gated) * self.feed_forward)

    @property
    def embedding(self) -> int:
        """Weights of the embedding."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """Weights of all layers, and of the embedding."""
        return self.layers * self.layer + self.embedding

    def adapter(self, rank: int) -> int:
        """Weights of a LoRA on the query and value projections of one layer."""
        return rank * (2 * self.width + self.queries + self.keys)


@dataclass(frozen=True)
class Work:
    """One prompt with its responses, under a model that branches at layer b.

    Attributes:
        experts: with a LoRA; experts that are heads pass no layer.
        plain: passes of the branch without an expert; 2 in the default recipe, 1 in `frozen`, 0 in the paper's.
        rank: of the LoRAs on the query and value projections.
        pools_all: the embedding reads all tokens of a response (pooling `mean` and `both`), not the last alone.
        shared: the responses share one pass of the prompt; false: each is a row of its own with the prompt.
    """

    prompt: int
    responses: int
    tokens: int
    trunk: int
    experts: int = 5
    plain: int = 2
    rank: int = 16
    pools_all: bool = False
    shared: bool = True

    @property
    def packed_tokens(self) -> int:
        """P + N R, by which passes are sized."""
        return self.prompt + self.responses * self.tokens

    @property
    def all_tokens(self) -> int:
        """The tokens that pass a layer: P + N R, or N (P + R) if the prompt is not shared."""
        return self.packed_tokens if self.shared else self.responses * (self.prompt + self.tokens)

    @property
    def pairs(self) -> float:
        """Pairs of tokens that attend to each other in one layer."""
        if not self.shared:
            return self.responses * (self.prompt + self.tokens) ** 2
        return self.prompt**2 / 2 + self.responses * self.tokens * (self.prompt + self.tokens)


def flops(backbone: BackboneShape, work: Work) -> dict[str, float]:
    """Return the operations of scoring by kind (linear, lora, attention); a multiplication with its addition is two."""
    top, passes = backbone.layers - work.trunk, work.experts + work.plain
    lora = 2.0 * work.all_tokens * backbone.adapter(work.rank) * work.experts * top
    if not work.shared:
        linear, attention = (part * passes * top for part in _of_layer(backbone, work))
        return {"linear": linear, "lora": lora, "attention": attention}
    keys = 2 * backbone.width * backbone.keys
    whole = work.trunk + passes * (top - 1)  # layers that every token passes
    pooled = work.responses * (work.tokens if work.pools_all else 1)
    linear = work.all_tokens * (backbone.layer * whole + keys * passes) + pooled * backbone.layer * passes
    last = pooled * (work.prompt + work.tokens)
    return {
        "linear": 2.0 * linear,
        "lora": lora,
        "attention": 4.0 * backbone.queries * (work.pairs * whole + last * passes),
    }


def layer_flops(backbone: BackboneShape, work: Work) -> float:
    """Return the operations of one forward pass of one layer, for all tokens of the prompt and its responses."""
    return sum(_of_layer(backbone, work))


def _of_layer(backbone: BackboneShape, work: Work) -> tuple[float, float]:
    return 2.0 * work.all_tokens * backbone.layer, 4.0 * backbone.queries * work.pairs


def plain_flops(backbone: BackboneShape, work: Work) -> float:
    """Return the operations of one plain reward model, which reads the prompt again with every response."""
    length = work.prompt + work.tokens
    pairs = length**2 / 2 if work.shared else length**2
    per_layer = 2.0 * length * backbone.layer + 4.0 * backbone.queries * pairs
    return work.responses * backbone.layers * per_layer
