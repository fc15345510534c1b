"""A reward model as TRL's reward function: normalized, checked, safe against empty responses.

Rewards are normalized by the initial policy's: (r − mean) / std, with the mean over all samples and the standard
deviation within prompts, because preferences say nothing about differences between prompts. So one `beta`
means the same for every reward model. An empty response is below every other: these rewards have no common unit (any
method may give them), so it gets one standard deviation less than the lowest reward of its batch and of the initial
policy's samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..errors import TrainingError, shorten
from ..schema import Prompt, Query, is_empty
from ..scores import group_by_prompt

Reward = Callable[[Sequence[Query]], list[list[float]]]
"""Queries → for each query one reward a response; higher is better."""

Gold = Callable[[str | None, Prompt, str], float]
"""Task, prompt, response → the gold reward."""


class RLPrompt(NamedTuple):
    """A prompt to optimize or to measure on.

    Attributes:
        task: the task's name, or None where it is not known.
        prompt: a text, or a conversation that ends with the user's turn.
    """

    task: str | None
    prompt: Prompt


class Scale(BaseModel):
    """Rewards of the initial policy's samples.

    Attributes:
        mean: over all of them.
        std: within prompts.
        lowest: the smallest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    mean: float
    std: float
    lowest: float

    def normalize(self, reward: float) -> float:
        """In standard deviations above the initial policy's mean."""
        return (reward - self.mean) / self.std


def raw_rewards(
    reward: Reward, prompts: Sequence[RLPrompt], texts: Sequence[str], step: int, scale: Scale | None = None
) -> list[float]:
    """Return one reward per response, in order; `prompts` has each response's prompt.

    Args:
        step: the step that errors name.
        scale: of the initial policy's samples; None: these are its samples.

    Raises:
        TrainingError: a reward is not finite, or there are more or fewer than responses.
    """
    with_text = [index for index, text in enumerate(texts) if not is_empty(text)]
    groups = group_by_prompt((prompts[i].task, prompts[i].prompt, texts[i]) for i in with_text)
    rows = reward([query for query, _ in groups]) if groups else []
    by_index: dict[int, float] = {}
    for (query, indices), values in zip(groups, rows, strict=True):
        at = [with_text[index] for index in indices]
        if len(values) != len(at):
            raise TrainingError(f"step {step}: {len(values)} rewards for {len(at)} responses; fix the reward function")
        by_index |= dict(zip(at, (float(value) for value in values), strict=True))
        _check(by_index, at, query, step)
    least = _below(list(by_index.values()), scale)
    return [by_index.get(index, least) for index in range(len(texts))]


def _below(rewards: Sequence[float], scale: Scale | None) -> float:
    """The reward of an empty response: one standard deviation below all others."""
    if scale is not None:
        return min([*rewards, scale.lowest]) - scale.std
    return min(rewards) - float(np.std(rewards) or 1.0) if rewards else 0.0


def _check(rewards: dict[int, float], indices: Sequence[int], query: Query, step: int) -> None:
    for number, index in enumerate(indices):
        if not math.isfinite(rewards[index]):
            raise TrainingError(
                f"step {step}: the reward of response {number}, {shorten(query.responses[number])}, to the prompt "
                f"{shorten(query.prompt)} is {rewards[index]}; fix the reward model, or lower its learning rate"
            )


def measure_scale(rewards: Sequence[float], count: int) -> Scale:
    """Compute the scale from rewards of the initial policy's samples, `count` per prompt, prompt after prompt.

    Raises:
        TrainingError: the rewards are the same within every prompt.
    """
    table = np.asarray(rewards, dtype=float).reshape(-1, count)
    std = float(np.sqrt(table.var(axis=1, ddof=1).mean()))
    if std < 1e-12:
        raise TrainingError(
            "step 0: the reward model gives all responses to a prompt the same reward: there is nothing to optimize; "
            "give another reward model, or more scale_prompts"
        )
    return Scale(mean=float(table.mean()), std=std, lowest=float(table.min()))


class TRLReward:
    """The reward function of TRL's trainers; the dataset's column `prompt_index` is each row's prompt."""

    __name__ = "reward"

    def __init__(self, reward: Reward, prompts: Sequence[RLPrompt], scale: Scale) -> None:
        self.reward, self.prompts, self.scale = reward, prompts, scale

    def __call__(self, completions: list[str], prompt_index: list[int], trainer_state: Any, **_: Any) -> list[float]:
        """Normalized rewards of the completions."""
        prompts, texts = [self.prompts[i] for i in prompt_index], [text.strip() for text in completions]
        raw = raw_rewards(self.reward, prompts, texts, trainer_state.global_step + 1, self.scale)
        return [self.scale.normalize(value) for value in raw]
