"""A reward model as TRL's reward function: normalized and checked, with the lowest reward for empty responses.

Rewards are normalized by those of the initial policy's samples: (r − mean) / std, with the mean over all samples and
the standard deviation within prompts, because preferences do not determine differences between prompts. So a value of
`beta` means the same for every reward model. An empty response gets less than every other: one standard deviation below
the lowest reward of its batch and of the initial policy's samples, because methods differ in the unit of their rewards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from dmoerm.errors import TrainingError, shorten
from dmoerm.schema import Prompt, Query, is_empty
from dmoerm.scores import group_by_prompt
from evidence.rl.policy_settings import RLConfig

Reward = Callable[[Sequence[Query]], list[list[float]]]
"""Queries → one reward per response for each query; higher is better."""

Gold = Callable[[str | None, Prompt, str], float]
"""Task, prompt, response → the gold reward."""


class RLPrompt(NamedTuple):
    """A prompt for optimization or measurements.

    Attributes:
        task: the task's name; None if it is not known.
        prompt: a text, or a conversation that ends with the user's turn.
    """

    task: str | None
    prompt: Prompt


class Scale(BaseModel):
    """Statistics of the rewards of the initial policy's samples.

    Attributes:
        mean: their mean.
        std: their standard deviation within prompts.
        lowest: the lowest of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    mean: float
    std: float
    lowest: float

    def normalize(self, reward: float) -> float:
        """Return the reward in standard deviations above the initial policy's mean."""
        return (reward - self.mean) / self.std


def raw_rewards(
    reward: Reward, prompts: Sequence[RLPrompt], texts: Sequence[str], step: int, scale: Scale | None = None
) -> list[float]:
    """Return one reward per response, in order; `prompts` has each response's prompt.

    Args:
        step: the step, for error messages.
        scale: statistics of the initial policy's samples; None: the responses are these samples.

    Raises:
        TrainingError: a reward is not finite, or the number of rewards differs from that of responses.
    """
    with_text = [index for index, text in enumerate(texts) if not is_empty(text)]
    groups = group_by_prompt((prompts[i].task, prompts[i].prompt, texts[i]) for i in with_text)
    rows = reward([query for query, _ in groups]) if groups else []
    by_index: dict[int, float] = {}
    for (query, indices), values in zip(groups, rows, strict=True):
        members = [with_text[index] for index in indices]
        if len(values) != len(members):
            raise TrainingError(
                f"step {step}: {len(values)} rewards for {len(members)} responses; fix the reward function"
            )
        by_index |= dict(zip(members, (float(value) for value in values), strict=True))
        _check(by_index, members, query, step)
    empty = _empty_reward(list(by_index.values()), scale)
    return [by_index.get(index, empty) for index in range(len(texts))]


def _empty_reward(rewards: Sequence[float], scale: Scale | None) -> float:
    """Return the reward of an empty response: one standard deviation below all others."""
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
            "step 0: the reward model gives all responses to a prompt the same reward, so nothing can be optimized; "
            "use another reward model or raise scale_prompts"
        )
    return Scale(mean=float(table.mean()), std=std, lowest=float(table.min()))


class TRLReward:
    """The reward function of TRL's trainers; the dataset's column `prompt_index` is each row's prompt."""

    __name__ = "reward"

    def __init__(self, reward: Reward, prompts: Sequence[RLPrompt], scale: Scale, end: int, settings: RLConfig) -> None:
        """Create the function; `end` is the id of the end token."""
        self.reward, self.prompts, self.scale, self.end, self.settings = reward, prompts, scale, end, settings

    def __call__(
        self,
        completions: list[str],
        prompt_index: list[int],
        trainer_state: Any,
        completion_ids: Sequence[Sequence[int]],
        **_: Any,
    ) -> list[float]:
        """Return the normalized rewards of the completions, less the penalty of those without an end token."""
        prompts, texts = [self.prompts[i] for i in prompt_index], [text.strip() for text in completions]
        step = trainer_state.global_step // self.settings.updates + 1
        raw = raw_rewards(self.reward, prompts, texts, step, self.scale)
        penalties = [self.settings.missing_eos_penalty * (not ids or ids[-1] != self.end) for ids in completion_ids]
        return [self.scale.normalize(value) - penalty for value, penalty in zip(raw, penalties, strict=True)]
