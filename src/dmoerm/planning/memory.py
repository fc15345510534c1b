"""Bytes on the accelerator and on disk, from shapes.

A weight in training takes 22 bytes: float32 value, gradient and best value (12), AdamW's two moments (8), and the copy
that autocast makes in bfloat16 (2), which a float32 backbone does not need. The best value is that of
`training/tracking.py`.
"""

from __future__ import annotations

from .recipe import Recipe
from .work import BackboneShape, Work

PASS_TOKENS = 8192
"""Tokens of a pass on a CPU, where a token counts once per expert. On an accelerator with free memory, passes have more
(`dmoerm.model.memory`); what a plan counts is needed at least."""
_TRAINED, _COPY = 20, 2
OVERHEAD = 1.5e9
"""CUDA's context and the allocator's unused blocks, in bytes; assumed."""


def checkpoint_bytes(
    backbone: BackboneShape,
    trunk: int,
    branches: int,
    adapters: int,
    rank: int,
    size: float = 4,
    branch_size: float = 4,
    embedding_size: float = 4,
) -> float:
    """Return the bytes of a model's weights on disk, or on a device: embedding, trunk, branches, adapters.

    Args:
        branches: the general one included.
        adapters: number of experts with a LoRA, over all tasks.
        size, branch_size, embedding_size: bytes of a weight of the trunk, a branch, the embedding.
    """
    top = backbone.layers - trunk
    shared = embedding_size * backbone.embedding + size * trunk * backbone.layer
    return shared + branch_size * branches * top * backbone.layer + 4 * adapters * top * backbone.adapter(rank)


def cached_bytes(backbone: BackboneShape, tokens: float, size: float = 2) -> float:
    """Return the size on disk of the trunk's activations of `tokens` tokens."""
    return tokens * backbone.width * size


def model_bytes(recipe: Recipe) -> float:
    """Return the bytes of the weights of the trained model, as it is loaded to score."""
    sizes = {
        "size": recipe.bytes_per_frozen,
        "branch_size": 4.0 if recipe.base == "full" else recipe.bytes_per_frozen,
        "embedding_size": recipe.bytes_per_weight,
    }
    adapters = recipe.tasks * recipe.lora_experts
    weights = checkpoint_bytes(recipe.shape, recipe.trunk, recipe.branches, adapters, recipe.rank, **sizes)
    return weights + 4.0 * recipe.shape.parameters * recipe.own_router


def scoring_bytes(recipe: Recipe, batch_tokens: float = PASS_TOKENS) -> float:
    """Return the bytes that scoring takes on one accelerator: weights, and the activations of one layer."""
    return model_bytes(recipe) + pass_bytes(recipe.shape, recipe.bytes_per_weight, batch_tokens) + OVERHEAD


def repeated(work: Work) -> float:
    """Return the tokens of a pass relative to those by which it is sized; above 1 if prompts are repeated."""
    return work.all_tokens / work.packed_tokens


def pass_bytes(shape: BackboneShape, size: float, tokens: float = PASS_TOKENS) -> float:
    """Return the bytes of a pass's activations without gradients: those of one layer.

    Args:
        size: bytes of a number in the backbone's dtype.
    """
    feed_forward = (2 + shape.gated) * shape.feed_forward
    return tokens * size * (4 * shape.width + 2 * shape.queries + 2 * shape.keys + feed_forward)


def trained_weights(recipe: Recipe) -> float:
    """Return the weights that the largest step trains: a branch or its LoRA, a task's experts, a router's own model."""
    shape = recipe.shape
    branch = {"full": recipe.top * shape.layer, "lora": recipe.top * shape.adapter(recipe.base_rank), "frozen": 0}
    experts = stacked(recipe) * recipe.top * shape.adapter(recipe.rank)
    return max(branch[recipe.base], experts, shape.parameters * recipe.own_router)


def stacked(recipe: Recipe) -> int:
    """Return the number of experts with a LoRA that one step trains together."""
    return min(recipe.lora_experts, recipe.config.experts_per_step or recipe.lora_experts)


def training_bytes(recipe: Recipe, work: Work, shards: int = 1) -> float:
    """Return the bytes that training takes on one accelerator: the model, the largest step, its activations.

    Args:
        work: a group of the data; one that is longer than a pass has a pass of its own.
        shards: number of accelerators over which the weights of layers are divided; 1: each holds all of them.
    """
    trained, size = trained_weights(recipe), recipe.bytes_per_weight
    tokens = max(PASS_TOKENS, work.packed_tokens * max(stacked(recipe), 1)) if trained else 0
    rows = tokens * repeated(work)
    kept = kept_bytes(recipe.shape, recipe.top, size, rows, recipe.config.gradient_checkpointing)
    divided = shards if recipe.base == "full" else 1  # a LoRA is whole on each
    forward = scoring_bytes(recipe, PASS_TOKENS * repeated(work)) - model_bytes(recipe)
    return model_bytes(recipe) / shards + trained_bytes(trained, size) / divided + kept + forward


def trained_bytes(weights: float, size: float) -> float:
    """Return the bytes that a number of weights takes while they are trained."""
    return weights * (_TRAINED + _COPY * (size == 2))


def kept_bytes(
    shape: BackboneShape, layers: int, size: float, tokens: float = PASS_TOKENS, checkpointing: bool | str = False
) -> float:
    """Return the bytes of activations that a number of layers keeps for the backward pass.

    Args:
        checkpointing: each layer keeps its input alone, on the CPU with `offload`, and the layer that runs again all.
    """
    each = activation_bytes(shape, size)
    if not checkpointing:
        return tokens * layers * each
    return tokens * ((layers * size * shape.width if checkpointing != "offload" else 0) + each)


def activation_bytes(shape: BackboneShape, size: float) -> float:
    """Return the bytes that the backward pass of a layer keeps per token; norms are computed in float32.

    Kept are the inputs of the linear layers, of attention's and the gate's products, and of the activation function.
    """
    products = 6 * shape.width + 2 * shape.queries + 2 * shape.keys + (2 + 2 * shape.gated) * shape.feed_forward
    return size * products + 4 * 2 * shape.width
