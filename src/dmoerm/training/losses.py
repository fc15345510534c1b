"""From examples to a loss: collators make batches, a module maps a batch to the losses of its rows.

    PreferenceExample → PreferenceBatch (features and pairs of one pass) → RowLosses → mean by expert

    preference   a row is an ordered pair:   −p log σ(m) − (1 − p) log σ(−m),  m = r_better − r_worse − margin
    routing      a row is a prompt:          cross-entropy of the router's logits (router.py)

A collator returns a list of batches: the parts of a pass that this process computes. A task's k experts are stacked, so
one pass trains them all: every trained parameter has a first dimension of size k. The loss is a sum over the experts,
and no slice of a parameter occurs in the terms of two experts, so each slice gets the gradient that it would get alone.

Shapes: k experts, a active experts, N responses, D embedding width, P pairs of a batch, Q prompts, T tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..model.experts import lora_layers
from ..model.heads import Head, embed
from ..model.layers import Decoder
from ..model.memory import PASS_TOKENS
from ..model.packing import Packed, greedy, pack, to_device, transfer
from .examples import PreferenceExample
from .processes import shard, sharded, world_size

Collate = Callable[[Sequence[Any]], list[Any]]


# --- batches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PreferenceBatch:
    """N responses and P ordered pairs of them, for one pass of k experts.

    Attributes:
        inputs: vectors (N, D), or packed hidden states or ids.
        better, worse: (P,), indices of the responses, 0 … N − 1.
        target: (P,), the probability that the better one is better: 1 for people's order, 0.5 for a tie.
        margin: (P,), the reward difference that the label requires.
        weight: (P,), the pair's weight / number of its group's pairs for the same expert; every group has weight 1.
        expert: (P,), index of the expert that the pair trains, 0 … k − 1.
        active: (a,), ascending indices of the experts that run on this part; None: all k.
        total: (k,), summed weights by expert of the whole batch, of which this is a part; None: this is all of it.
        share: 1 / number of parts; scales loss terms that do not depend on the data.
    """

    inputs: Tensor | Packed
    better: Tensor
    worse: Tensor
    target: Tensor
    margin: Tensor
    weight: Tensor
    expert: Tensor
    active: Tensor | None = None
    total: Tensor | None = None
    share: float = 1.0

    def to(self, device: Any) -> PreferenceBatch:
        """Return the batch on a device."""
        small = {name: value for name, value in vars(self).items() if isinstance(value, Tensor) and name != "inputs"}
        moved = dict(zip(small, transfer(list(small.values()), device), strict=True))
        inputs = self.inputs
        inputs = inputs.to(device) if isinstance(inputs, Packed) else to_device(inputs, device)
        return replace(self, inputs=inputs, **moved)


@dataclass(frozen=True)
class VectorCollator:
    """Collate examples whose features are vectors (N, D), one per response, into one batch.

    Args:
        features: example → features.
        capabilities: pairs of the i-th capability train the i-th expert; None: the overall preferences.
    """

    features: Callable[[PreferenceExample], Tensor]
    capabilities: Sequence[str | None] = (None,)

    def __call__(self, batch: Sequence[PreferenceExample]) -> list[PreferenceBatch]:
        vectors = torch.cat([self.features(example) for example in batch])
        pairs: dict[str, Any] = _pairs(batch, self.capabilities)
        return [PreferenceBatch(vectors, **pairs)]


@dataclass(frozen=True)
class PackedCollator:
    """Collate examples whose features are hidden states or ids into the parts that this process computes.

    The examples of a part have labels for the same experts, `active`, so no expert runs on a text that it has no label
    for. Each part has the summed weights of the whole batch divided by the world size. Gradients are averaged over
    the processes, so the parts' losses sum to the batch's loss, however many examples each process has.

    Args:
        features: example → the prompt's (P, d) and a list of each response's (R, d).
        capabilities: see `VectorCollator`.
        budget: maximum tokens of a part, where a token counts once for each active expert.
    """

    features: Callable[[PreferenceExample], tuple[Tensor, list[Tensor]]]
    capabilities: Sequence[str | None] = (None,)
    budget: int = PASS_TOKENS

    def __call__(self, batch: Sequence[PreferenceExample]) -> list[PreferenceBatch]:
        parts = [self._part(examples) for examples in self._divided(shard(batch))]
        count = max(len(parts), 1)
        if sharded():  # a pass is a collective: every process needs as many parts as the one with most
            count = max(len(self._divided(batch[r :: world_size()])) for r in range(world_size()))
        if len(parts) < count:
            dummy = self._part([min(batch, key=lambda example: example.encoded.tokens)])
            ties = torch.zeros_like(dummy.weight), torch.full_like(dummy.target, 0.5)  # without weight in any mean
            parts += [replace(dummy, weight=ties[0], target=ties[1])] * (count - len(parts))
        pairs = _pairs(batch, self.capabilities)
        total = torch.zeros(len(self.capabilities)).index_add(0, pairs["expert"], pairs["weight"]) / world_size()
        return [replace(part, total=total, share=1 / len(parts)) for part in parts]

    def _part(self, examples: Sequence[PreferenceExample]) -> PreferenceBatch:
        pairs: dict[str, Any] = _pairs(examples, self.capabilities)
        inputs = pack([self.features(example) for example in examples])
        return PreferenceBatch(inputs, **pairs, active=torch.tensor(self._active(examples[0])))

    def _divided(self, batch: Sequence[PreferenceExample]) -> list[list[PreferenceExample]]:
        """Return the examples in parts with the same active experts, each within the budget."""
        by_experts: dict[tuple[int, ...], list[PreferenceExample]] = {}
        for example in batch:
            by_experts.setdefault(self._active(example), []).append(example)
        parts: list[list[PreferenceExample]] = []
        for active, some in by_experts.items():
            longest_first = sorted(some, key=lambda example: example.encoded.tokens, reverse=True)
            parts += greedy(longest_first, lambda example: example.encoded.tokens, self.budget // len(active))
        return parts

    def _active(self, example: PreferenceExample) -> tuple[int, ...]:
        pairs = example.pairs
        return tuple(i for i, name in enumerate(self.capabilities) if pairs.get(name)) or (0,)


def _pairs(batch: Sequence[PreferenceExample], capabilities: Sequence[str | None]) -> dict[str, Tensor]:
    rows: list[tuple[int, int, float, float, float, int]] = []
    offset = 0
    for example in batch:
        known = example.pairs
        labels = [(expert, pair) for expert, name in enumerate(capabilities) for pair in known.get(name, ())]
        count = Counter(expert for expert, _ in labels)
        for expert, pair in labels:
            margin = example.margin if capabilities[expert] is None else 0.0
            weight = pair.weight / count[expert]
            rows.append((offset + pair.better, offset + pair.worse, pair.probability, margin, weight, expert))
        offset += len(example.encoded.responses)
    names = ("better", "worse", "target", "margin", "weight", "expert")
    columns = zip(*rows, strict=True) if rows else ((),) * 6
    types = {name: torch.float32 if name in ("target", "margin", "weight") else torch.long for name in names}
    return {name: torch.tensor(column, dtype=types[name]) for name, column in zip(names, columns, strict=True)}


# --- losses -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RowLosses:
    """The loss of a batch, or of a part of one, and its rows.

    Attributes:
        loss: the minimized value: the sum over the experts of their mean loss, plus the `l2` penalty.
        rows: (P,), the loss of each row.
        weights: (P,), each row's weight in the mean.
        correct: (P,), 1 where the pair is in the labeled order or the prompt's task is the likeliest one, else 0.
        certainty: (P,), each row's weight in the accuracy: 2 p − 1.
        expert: (P,), the expert that the row trains.
    """

    loss: Tensor
    rows: Tensor
    weights: Tensor
    correct: Tensor
    certainty: Tensor
    expert: Tensor


def preference_losses(margins: Tensor, target: Tensor) -> Tensor:
    """Return each pair's Bradley–Terry loss (P,), by `logsigmoid`: no overflow.

    Args:
        margins: (P,), r_better − r_worse − the margin that the label requires.
        target: (P,), p, the probability that the better one is better: 1 for people's order, 0.5 for a tie.
    """
    margins = margins.float()
    return (1 - target) * margins - functional.logsigmoid(margins)  # log σ(−m) = log σ(m) − m


def mean_by_expert(
    values: Tensor, weights: Tensor, expert: Tensor, num_experts: int, total: Tensor | None = None
) -> Tensor:
    """Return each expert's weighted mean (k,) of its rows' values.

    Args:
        values, weights, expert: (P,).
        total: (k,), what the weighted sums are divided by; None: the sums of `weights`.
    """
    sums = torch.zeros(num_experts, dtype=values.dtype, device=values.device)
    total = sums.index_add(0, expert, weights.to(values.dtype)) if total is None else total
    return sums.index_add(0, expert, values * weights) / total.clamp(min=1e-12)


class PreferenceLossModule(nn.Module):
    """The preference loss of a scorer, or of k stacked scorers.

    Args:
        scorer: maps vectors (N, D), or the packed hidden states of N responses, to rewards (N,), or (k, N).
        l2: strength of the penalty: l2 / 2 · squared distance of `penalized` from its start is added to the loss.
        penalized: the module whose trained parameters are penalized.
        num_experts: k if every trained parameter of the scorer is a stack of k; None: a single scorer.
    """

    def __init__(
        self, scorer: nn.Module, l2: float = 0.0, penalized: nn.Module | None = None, num_experts: int | None = None
    ) -> None:
        super().__init__()
        self.scorer, self.l2, self.num_experts = scorer, l2, num_experts
        self._penalized = [p for p in (penalized or nn.Module()).parameters() if p.requires_grad] if l2 else []
        self._start = [p.detach().clone() for p in self._penalized]

    def forward(self, batch: PreferenceBatch) -> RowLosses:
        expert, active = batch.expert, batch.active
        rewards = self.scorer(batch.inputs)[None] if self.num_experts is None else self.scorer(batch.inputs, active)
        row = expert if active is None else torch.searchsorted(active, expert)
        margins = rewards[row, batch.better] - rewards[row, batch.worse]
        rows = preference_losses(margins - batch.margin, batch.target)
        loss = mean_by_expert(rows, batch.weight, expert, self.num_experts or 1, batch.total).sum()
        starts = zip(self._penalized, self._start, strict=True)
        distances = [(parameter - start.to(parameter.device)).square().sum() for parameter, start in starts]
        if distances:  # the parts' shares sum to the penalty
            loss = loss + batch.share * self.l2 / 2 * torch.stack(distances).sum()
        return RowLosses(loss, rows, batch.weight, (margins > 0).to(rows.dtype), 2 * batch.target - 1, expert)


class HeadStack(nn.Module):
    """k heads: embeddings (k, N, D) → scores (k, N).

    With `active` (a,), expert indices, only these heads run: embeddings (a, N, D) → scores (a, N).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([head.score.weight.detach() for head in heads]))
        self.register_buffer("mean", torch.stack([head.normalizer.mean for head in heads]))
        self.register_buffer("scale", torch.stack([head.normalizer.scale for head in heads]))

    def forward(self, embeddings: Tensor, active: Tensor | None = None) -> Tensor:
        index = slice(None) if active is None else active
        normalized = (embeddings.float() - self.mean[index, None]) / self.scale[index, None]
        return (normalized @ self.weight[index, :, None]).squeeze(-1)

    def states(self) -> list[dict[str, Tensor]]:
        """Return the state of each head, in the names of `Head`."""
        weight = self.weight.detach()[:, None]
        parts = {"normalizer.mean": self.mean, "normalizer.scale": self.scale, "score.weight": weight}
        return [{name: part[i].clone() for name, part in parts.items()} for i in range(len(weight))]


class ExpertStack(nn.Module):
    """k experts: packed hidden states of N responses → scores (k, N); with `active` (a,), scores (a, N)."""

    def __init__(self, branch: Decoder, head: HeadStack, pooling: str) -> None:
        super().__init__()
        self.branch, self.head, self.pooling = branch, head, pooling

    def forward(self, inputs: Packed, active: Tensor | None = None) -> Tensor:
        for layer in lora_layers(self.branch).values():
            layer.active = active
        count = len(self.head.weight) if active is None else len(active)
        return self.head(embed(self.branch, inputs, self.pooling, count), active)
