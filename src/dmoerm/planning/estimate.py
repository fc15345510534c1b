"""Hours, gigabytes and dollars of training and scoring, from a recipe, a workload and a machine.

Trunk and plain branch run once per text, for the cache. A step that trains layers reads its groups `epochs` times: a
forward pass costs one unit per layer, the backward pass through a trained layer two, through a frozen one with a LoRA
one; `gradient_checkpointing` adds one. The router's own model reads prompts alone. Heads, the aggregator and the
evaluation after training are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..config import BranchStepConfig, StepConfig
from .machines import Machine
from .memory import PASS_TOKENS, cached_bytes, model_bytes, repeated, scoring_bytes, training_bytes
from .recipe import Recipe
from .work import Work, flops, layer_flops, plain_flops


@dataclass(frozen=True)
class Workload:
    """The texts of a plan.

    Attributes:
        groups: prompts of the training part, each with its responses; a pair is a group with two.
        prompt, response: tokens of a prompt and of a response.
        responses: per prompt.
        scored: responses to score after training.
    """

    groups: int
    prompt: int
    response: int
    responses: int
    scored: int


@dataclass(frozen=True)
class CostEstimate:
    """What one activity takes.

    Attributes:
        flops: operations.
        layer_calls: calls of a layer or of its backward pass, however many tokens they have.
        seconds, dollars: on the whole machine.
        memory: bytes on each accelerator.
    """

    flops: float
    layer_calls: float
    seconds: float
    dollars: float
    memory: float


@dataclass(frozen=True)
class RunPlan:
    """The estimates of a config on a machine.

    Attributes:
        sharded_memory: bytes on each accelerator in training if the layers are divided over all; None: they cannot be
            divided.
        model: bytes of the model's weights.
        cache, cache_limit: bytes of the cached activations on disk, and the setting.
        ratio: operations of scoring relative to one plain reward model on the same texts.
        packed: false: the backbone runs by its own forward, and cannot be split, divided or quantized.
    """

    machine: Machine
    training: CostEstimate
    scoring: CostEstimate
    sharded_memory: float | None
    model: float
    cache: float
    cache_limit: float
    ratio: float
    packed: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return asdict(self)

    def problems(self) -> Iterator[str]:
        """Yield a sentence for each part that does not fit on the machine or within a setting, with what helps."""
        if self.cache > self.cache_limit:
            yield (
                f"the cache needs {self.cache / 1e9:,.0f} GB of disk and cache_limit is {self.cache_limit / 1e9:,.0f}: "
                "raise it, or each step computes the rest again, which is not in the estimate"
            )
        limit = self.machine.accelerator.memory
        if limit is None:
            return
        if self.scoring.memory > limit:
            hint = "set base to frozen, or use a larger GPU"
            if self.packed:
                hint = (
                    "set backbone.quantization to 4bit or base to frozen, use a larger GPU, or start `dmoerm score` "
                    "with torchrun, which divides the layers"
                )
            yield f"scoring needs {self.scoring.memory / 1e9:.0f} GB on one GPU, which has {limit / 1e9:.0f}: {hint}"
        if min(self.training.memory, self.sharded_memory or float("inf")) > limit:
            yield (
                f"training needs {self.training.memory / 1e9:.0f} GB on one GPU, which has {limit / 1e9:.0f}: set base "
                "to frozen or lora, gradient_checkpointing to true or offload, "
                f"{'a higher backbone.branch_layer, ' * self.packed}or a lower experts_per_step"
            )
        elif self.training.memory > limit:
            yield "training does not fit on one GPU: launch it with configs/accelerate/fsdp2.yaml, which divides layers"


def make_plan(recipe: Recipe, workload: Workload, machine: Machine) -> RunPlan:
    """Estimate training on the workload's groups and scoring its responses."""
    work = recipe.work(workload.prompt, workload.responses, workload.response)
    whole = recipe.own_router or recipe.config.backbone.quantization != "none"  # what cannot be sharded
    shards = 1 if whole else machine.count
    count = sum(flops(recipe.shape, work).values()) + recipe.own_router * router_flops(recipe, work)
    scored_prompts = workload.scored / workload.responses
    per_pass = recipe.trunk + recipe.top * (recipe.plain + bool(recipe.lora_experts))
    per_pass += recipe.own_router * recipe.shape.layers
    pass_count = _passes(work, scored_prompts, recipe.lora_experts)
    scoring = count * scored_prompts, pass_count * per_pass
    return RunPlan(
        machine,
        _estimate(machine, training_work(recipe, work, workload.groups), training_bytes(recipe, work)),
        _estimate(machine, scoring, scoring_bytes(recipe, PASS_TOKENS * repeated(work))),
        training_bytes(recipe, work, shards) if shards > 1 else None,
        model_bytes(recipe),
        _cached(recipe, work, workload.groups),
        recipe.config.cache_limit * 1e9,
        count / plain_flops(recipe.whole, work),
        recipe.packed,
    )


def _estimate(machine: Machine, work: tuple[float, float], memory: float) -> CostEstimate:
    seconds = machine.seconds(*work)
    return CostEstimate(*work, seconds, machine.dollars(seconds), memory)


def _passes(work: Work, prompts: float, experts: int) -> float:
    """Return the number of passes; a token counts once per expert, and a long prompt has a pass of its own."""
    tokens = work.packed_tokens * max(experts, 1)
    return max(prompts * min(1.0, tokens / PASS_TOKENS), min(prompts, 1.0))


def _cached(recipe: Recipe, work: Work, groups: int) -> float:
    """Return the bytes of cached states; embeddings alone are one or two vectors per response."""
    states = recipe.trunk > 0 and (recipe.base != "frozen" or recipe.rank > 0)
    vectors = groups * work.responses * (1 + recipe.pools_all) * (recipe.base == "frozen")
    texts = groups * work.packed_tokens if states else 0
    return cached_bytes(recipe.shape, texts, recipe.bytes_per_weight) + cached_bytes(recipe.shape, vectors, 4)


def training_work(recipe: Recipe, work: Work, groups: int) -> tuple[float, float]:
    """Return the operations and the layer calls of training on that many groups."""
    total = calls = 0.0
    for text, each in ((work, _reads(recipe, groups)), (_prompt(work), _router_reads(recipe, groups))):
        layer = layer_flops(recipe.shape, text)
        for layers, reads, experts, cost, per_step in each:
            total += reads * layers * experts * cost * layer
            steps = max(_passes(text, reads, experts), reads / per_step)
            calls += steps * layers * cost
    return total, calls


def router_flops(recipe: Recipe, work: Work) -> float:
    """Return the operations of the router's own model on a prompt."""
    return recipe.shape.layers * layer_flops(recipe.shape, _prompt(work))


def _prompt(work: Work) -> Work:
    """Return the work of the prompt alone."""
    return Work(work.prompt, 1, 0, 0, shared=work.shared)


_Reads = tuple[float, float, int, float, float]
"""Layers, groups that are read, experts, cost of a layer in forward passes, groups per pass."""


def _reads(recipe: Recipe, groups: int) -> Iterator[_Reads]:
    """Yield what each step reads."""
    config, top, many = recipe.config, float(recipe.top), float("inf")
    again = recipe.recomputed
    train = groups * (1 - config.data.validation_fraction)
    frozen = recipe.base == "frozen"
    if recipe.trunk or frozen:
        yield recipe.trunk + frozen * top, groups, 1, 1.0, many
    first = config.phase1.phase1_fraction or 1.0
    if not frozen:
        cost = again + (3.0 if recipe.base == "full" else 2.0)
        for step, part in ((config.phase0, 1.0), (config.phase1, first)):
            yield from _head_first(step, top, groups * part)
            yield from _step(step, top, train * part, groups - train, 1, cost)
    if recipe.lora_experts:
        if not frozen:
            yield from _head_first(config.phase2, top, groups)
        yield from _step(config.phase2, top, train, groups - train, recipe.lora_experts, 2.0 + again)
    if not frozen or recipe.lora_experts:  # the aggregator's inputs
        yield top, groups, recipe.lora_experts + recipe.plain, 1.0, many


def _router_reads(recipe: Recipe, groups: int) -> Iterator[_Reads]:
    """Yield what the training of the router's own model reads, of each group the prompt."""
    if recipe.own_router:
        train = groups * (1 - recipe.config.data.validation_fraction)
        cost = 3.0 + recipe.recomputed
        yield from _step(recipe.config.router, recipe.shape.layers, train, groups - train, 1, cost)


def _step(
    step: StepConfig, layers: float, train: float, validation: float, experts: int, cost: float
) -> Iterator[_Reads]:
    """Yield the reads of an optimizer's step and of its evaluations."""
    epochs = step.epochs if step.steps is None else step.steps * step.batch_groups / max(train, 1.0)
    yield layers, train * epochs, experts, cost, step.batch_groups / step.gradient_accumulation
    yield layers, validation * (step.evaluations + 2), experts, 1.0, step.batch_groups


def _head_first(step: BranchStepConfig, layers: float, groups: float) -> Iterator[_Reads]:
    """Yield the reads for embeddings on which a head is fitted before the branch is trained."""
    if step.head_first is not None:
        yield layers, groups, 1, 1.0, float("inf")
