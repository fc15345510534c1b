"""The scores of a reward model, from this process or from a server, the range of rewards, and people's weights.

Rewards are centered and scaled (standard deviation 1) and then bounded to (−20, 20): values within ±10 stay as they
are, values beyond it approach ±20 without reaching it. An empty response (no text but white space) has exactly
`MIN_REWARD`, which no other response has, so it is below every response to any prompt. Win probabilities are computed
on the unbounded values, so the bound changes neither the order nor the probabilities of responses with text.

Weights of capabilities, which people set when they score, shift the unbounded rewards without retraining:

    reward' = reward + 1/k · Σ_i (u_i − 1) · c_i        u_i: weights, 1 by default; c_i: the k capability scores
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Protocol

from .errors import DataError
from .names import BASE_SCORES, qualified_name
from .schema import Prompt, PromptInput, Query, parse_query

MIN_REWARD = -20.0
"""The reward of an empty response, and the lower end of the range; no other response reaches it."""

MAX_WEIGHT = 10.0
"""The largest absolute value of a capability's weight."""

Weights = Mapping[str, float]
"""Capability → weight."""

_IDENTITY = 10.0  # rewards within ± this value are not changed
_LOWEST = -19.999998092651367  # the float32 value next to MIN_REWARD: logits are float32


def bound_reward(value: float) -> float:
    """Map a calibrated reward into (−20, 20), strictly above `MIN_REWARD` in float32 too.

    f(x) = x for |x| ≤ 10, else sign(x) · (10 + 10 · u / (1 + u)) with u = (|x| − 10) / 10. A value that is not finite
    stays as it is, so that callers can report it.
    """
    if abs(value) <= _IDENTITY or not math.isfinite(value):
        return value
    excess = (abs(value) - _IDENTITY) / _IDENTITY
    bounded = _IDENTITY + _IDENTITY * (excess / (1 + excess))
    return math.copysign(min(bounded, -_LOWEST), value)


def unbound_reward(reward: float) -> float:
    """Invert `bound_reward`; ±inf at the ends of the range, and the value itself outside it (of another server)."""
    if abs(reward) <= _IDENTITY or not abs(reward) <= -MIN_REWARD:
        return reward
    share = (abs(reward) - _IDENTITY) / _IDENTITY
    return math.copysign(_IDENTITY + _IDENTITY * share / (1 - share) if share < 1 else math.inf, reward)


@dataclass(frozen=True)
class Score:
    """The score of one response.

    Attributes:
        reward: higher is better; centered and scaled per task, so that tasks compare, and bounded to (−20, 20). An
            empty response has `MIN_REWARD`.
        task: the given or the most probable task, whose capability scores are reported. Its model gives the reward,
            alone or mixed with others as training has chosen (docs/training.md, "Routing"). None: no task is likely
            enough, and the general model gives the reward.
        route: task → probability, from the prompt alone.
        capabilities: capability → score, in standard deviations from the training part's mean. Empty for the general
            model and for an empty response, whose rewards therefore do not depend on weights.
        uncertainty: the standard deviation of the reward under the posterior of the heads (last-layer Laplace
            approximation), in the reward's unit: how far the response is from the training data. It does not tell
            which pairs are ordered wrongly. None for an empty response and for a model without a posterior.
        temperature: σ((a − b) / temperature) is the probability that a is better than b, for unbounded rewards a and b.
        truncated: the prompt or the response was longer than the model reads, and part of it did not count.
        contributions: score → its part of the reward, relative to an average response to the task; they sum to the
            unbounded reward (see `unbound_reward`). The scores are those of the task's capabilities; `per_task`, the
            task's own model of overall labels; `all_labels`, its head on all labels; `general`, the general model; and
            `other_tasks`, the other tasks' models where models are mixed. A score without weight has exactly 0. Empty
            for an empty response, and for the paper's aggregator of more than 10 capabilities (docs/serving.md).
    """

    reward: float
    task: str | None
    route: dict[str, float]
    capabilities: dict[str, float]
    uncertainty: float | None
    temperature: float
    truncated: bool = False
    contributions: dict[str, float] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether this is the score of an empty response."""
        return self.reward == MIN_REWARD

    def win_probability(self, other: Score) -> float:
        """Return the calibrated probability that people prefer this response to the other, for the same prompt."""
        if self.reward == other.reward:
            return 0.5
        margin = unbound_reward(self.reward) - unbound_reward(other.reward)
        return 0.5 + 0.5 * math.tanh(margin / self.temperature / 2)  # σ without overflow

    def advantage(self, other: Score) -> dict[str, float]:
        """Return score → how much more it contributes than to the other response to the same prompt, largest first.

        The values sum to the difference of the unbounded rewards. Empty if either has no contributions.
        """
        if not (self.contributions and other.contributions):
            return {}
        names = {**self.contributions, **other.contributions}
        gains = {name: self.contributions.get(name, 0.0) - other.contributions.get(name, 0.0) for name in names}
        return dict(sorted(gains.items(), key=lambda item: -abs(item[1])))

    def reweighted(self, weights: Weights) -> Score:
        """Return the score with its reward and contributions under other weights; all else stays the same.

        A weight of 1 leaves a capability's share as the aggregator learned it; each unit more adds 1/k of the
        capability's score. Names that the task does not have are ignored; see `check_weights`.
        """
        share, changed = 1 / max(len(self.capabilities), 1), [n for n in self.capabilities if weights.get(n, 1) != 1]
        if not changed:
            return self
        shifts = {name: share * (float(weights[name]) - 1) * self.capabilities[name] for name in changed}
        reward = unbound_reward(self.reward) + sum(shifts.values())
        known = {name: value + shifts.get(name, 0.0) for name, value in self.contributions.items()}
        return replace(self, reward=bound_reward(reward), contributions=known)


def adjusted(scores: Iterable[list[Score]], weights: Weights | None = None) -> Iterator[list[Score]]:
    """Yield each query's scores under the weights; see `Score.reweighted`."""
    return ([score.reweighted(weights or {}) for score in row] for row in scores)


def check_task(tasks: Mapping[str, Sequence[str]], task: str, source: str = "") -> None:
    """Raise `DataError`, which begins with the source of the task, if the model has no such task."""
    if task not in tasks:
        hint = f"use one of {', '.join(tasks)}, or null to route"
        raise DataError("the model has no such task", file=source or None, field="task", value=task, hint=hint)


def check_weights(
    weights: Weights | None, tasks: Mapping[str, Sequence[str]], chosen: Iterable[str | None] = ()
) -> None:
    """Raise `DataError` for an unknown capability, or a weight that is not a number within ±`MAX_WEIGHT`.

    Args:
        chosen: the tasks of the queries. If all queries name a task, each weight must belong to one of these tasks. If
            the router decides (None), or nothing is chosen, it must belong to any task of the model.
    """
    if weights is None:
        return
    if not isinstance(weights, Mapping):
        message = f"is {type(weights).__name__}, not a mapping"
        raise DataError(message, field="weights", value=weights, hint="give a weight for each capability's name")
    chosen_tasks = set(chosen)
    known = bool(chosen_tasks) and chosen_tasks <= tasks.keys()
    allowed = {task: names for task, names in tasks.items() if task in chosen_tasks or not known}
    names = list(dict.fromkeys(name for capabilities in allowed.values() for name in capabilities))
    for name, weight in weights.items():
        if name not in names:
            owner = f"task {' or '.join(allowed)}" if known else "the model"
            hint = f"use one of {', '.join(names)}" if names else "leave the weights out"
            raise DataError(f"{owner} has no such capability", field="weights", value=name, hint=hint)
        if not isinstance(weight, Real) or isinstance(weight, bool) or not abs(float(weight)) <= MAX_WEIGHT:
            message = f"is not a number from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
            hint = "1 keeps the capability's share in the reward, 2 adds to it"
            raise DataError(message, field=f"weights.{name}", value=weight, hint=hint)


def log_columns(scores: Sequence[Score], tasks: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """Return name → one number per score; the same names for every batch, since trainers join batches.

    `has_uncertainty`, 1 where the score has one; `uncertainty`; `truncated`, 1 where part of the text did not count;
    `task/NAME`, 1 where `Score.task` is that task; `NAME/CAPABILITY`, the capability's score;
    `contribution/NAME/CAPABILITY`, its contribution to the reward, and `contribution/SCORE` the other scores' ones,
    such as `contribution/per_task` (see `Score.contributions`). In names, `%` and `/` are escaped as in a URL. If a
    task is called `task` and a capability of it is called like a task, its column begins with `%`, so that no two
    columns are the same.

    A value that a score does not have is 0: OpenRLHF and verl require the same names for every response and average
    whole columns, where a NaN would hide the other values. The mean over the scores that have an uncertainty is the
    ratio of the means of `uncertainty` and `has_uncertainty`; the mean of a capability over its own task is the ratio
    of the means of `NAME/CAPABILITY` and `task/NAME`.
    """
    task_columns = {task: qualified_name("task", task) for task in tasks}
    reserved = set(task_columns.values())
    names = [_capability_column(task, name, reserved) for task, capabilities in tasks.items() for name in capabilities]
    names = ["has_uncertainty", "uncertainty", "truncated", *task_columns.values(), *names]
    names += [contribution_name(task, name) for task, capabilities in tasks.items() for name in capabilities]
    names += [contribution_name("", name) for name in BASE_SCORES]
    columns = {name: [0.0] * len(scores) for name in names}
    for index, score in enumerate(scores):
        values = {"has_uncertainty": float(score.uncertainty is not None), "truncated": float(score.truncated)}
        values["uncertainty"] = score.uncertainty or 0.0
        if score.task is not None:
            values[task_columns[score.task]] = 1.0
            for name, value in score.capabilities.items():
                values[_capability_column(score.task, name, reserved)] = value
        values |= {contribution_name(score.task, name): value for name, value in score.contributions.items()}
        for name, value in values.items():
            columns[name][index] = value
    return columns


def contribution_name(task: str | None, name: str) -> str:
    """Return the name under which trainers log a contribution; see `log_columns`."""
    return qualified_name("contribution", *([] if task is None or name in BASE_SCORES else [task]), name)


def _capability_column(task: str, capability: str, reserved: Set[str]) -> str:
    column = qualified_name(task, capability)
    return f"%{column}" if column in reserved else column


class Scorer(Protocol):
    """Anything that scores queries: a `DMoERM`, or a `Client` of a server."""

    def score_queries(self, queries: Sequence[Query]) -> Iterable[list[Score]]:
        """Return one list per query with one score per response, in order."""
        ...


def as_queries(
    prompt: PromptInput | Sequence[PromptInput],
    responses: Sequence[str] | Sequence[Sequence[str]],
    task: str | Sequence[str | None] | None = None,
) -> tuple[list[Query], bool]:
    """Convert the arguments of `score` to queries.

    Returns:
        The queries, and whether the arguments were a single prompt with its responses instead of a list of prompts.

    Raises:
        DataError: a prompt is empty, or the counts do not match.
    """
    if isinstance(responses, str):
        raise DataError("is one text", field="responses", value=responses, hint="give a list of responses")
    lists = not isinstance(prompt, str) and isinstance(prompt, Sequence) and isinstance(responses, Sequence)
    if not lists or (responses and isinstance(responses[0], str)):
        if lists and any(isinstance(message, str) for message in prompt):
            message, hint = "several prompts, but one list of responses", "give one list of responses to each prompt"
            raise DataError(message, field="responses", value=responses, hint=hint)
        return [parse_query({"prompt": prompt, "responses": responses, "task": task})], True
    tasks = [task] * len(responses) if task is None or isinstance(task, str) else list(task)
    if not len(prompt) == len(responses) == len(tasks):
        counts = f"{len(prompt)} prompts, {len(responses)} lists of responses and {len(tasks)} tasks"
        raise DataError(counts, field="responses", hint="give one list of responses (and one task) to each prompt")
    rows = zip(prompt, responses, tasks, strict=True)
    return [parse_query({"prompt": each, "responses": texts, "task": name}) for each, texts, name in rows], False


def group_by_prompt(samples: Iterable[tuple[str | None, Prompt, str]]) -> list[tuple[Query, list[int]]]:
    """Group (task, prompt, response) samples into one query per task and prompt.

    Returns:
        Each query with the indices of its responses among the samples.

    Raises:
        DataError: a prompt is empty.
    """
    groups: dict[tuple[str | None, Prompt], dict[int, str]] = {}
    for index, (task, prompt, response) in enumerate(samples):
        groups.setdefault((task, prompt), {})[index] = response
    return [
        (parse_query({"task": task, "prompt": prompt, "responses": list(texts.values())}), list(texts))
        for (task, prompt), texts in groups.items()
    ]


def in_order(groups: Sequence[tuple[Query, list[int]]], scored: Iterable[list[Score]]) -> list[Score]:
    """Return the scores of `group_by_prompt`'s queries in the order of its samples."""
    by_index: dict[int, Score] = {}
    for (_, indices), scores in zip(groups, scored, strict=True):
        by_index |= dict(zip(indices, scores, strict=True))
    return [by_index[index] for index in range(len(by_index))]
