"""Measurements on held-out prompts: every run has the same prompts and, at each step, the same random numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from transformers import PreTrainedTokenizerBase

from dmoerm.io.paths import write_file
from evidence.rl.policy import RLConfig, load_policy, render
from evidence.rl.sampling import (
    Reward,
    RLPrompt,
    Scale,
    isolated_randomness,
    log_probabilities,
    raw_rewards,
    sample,
)
from evidence.testbed import gold_reward


class Point(BaseModel):
    """One measurement, on new samples for the held-out prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    step: int
    """Optimizer steps completed."""
    kl: float
    """KL to the initial policy in nats per response: the mean log-ratio of the samples, Σ_t log π(t) − log π_ref(t).
    Unbiased; may be slightly negative near 0."""
    proxy: float
    """The optimized reward in standard deviations of the initial policy's rewards."""
    gold: float
    """Mean gold reward."""
    gold_per_token: float
    """The rise of gold with each token of a response, within tasks: a least-squares fit to the samples."""
    gold_same_length: float
    """`gold` at the initial policy's length: without its `gold_per_token` times the change of the length."""
    length: float
    """Mean tokens of a response, including the end token."""
    ended: float
    """Share of the responses that end with the end token."""


class Trajectory(BaseModel):
    """One run: a reward model, a KL weight and a seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    method: str
    """The reward model's name."""
    parameters: int
    """The number of the policy's parameters, including embeddings."""
    settings: RLConfig
    """The run's settings."""
    points: tuple[Point, ...] = Field(min_length=1)
    """The measurements in the order of their steps; the first is before the first step."""


_POINTS = TypeAdapter(list[Point])


class Meter:
    """Measures a policy and stores the measurements in `folder`."""

    def __init__(
        self,
        policy: Path,
        tokenizer: PreTrainedTokenizerBase,
        reward: Reward,
        prompts: Sequence[RLPrompt],
        scale: Scale,
        settings: RLConfig,
        folder: Path,
    ) -> None:
        self.tokenizer, self.reward = tokenizer, reward
        self.scale, self.settings, self.folder = scale, settings, folder
        self.prompts = [prompt for prompt in prompts for _ in range(settings.samples)]
        self._texts = [render(prompt.prompt) for prompt in prompts]
        self._reference, self._policy = (load_policy(policy)[0].eval().requires_grad_(False) for _ in range(2))
        self.points: list[Point] = []

    def resume(self, step: int) -> bool:
        """Load the points up to a step, or all if the last step was measured; return whether there are any."""
        file = self.folder / "points.json"
        measured = _POINTS.validate_json(file.read_bytes()) if file.is_file() else []
        ended = bool(measured) and measured[-1].step == self.settings.steps
        self.points = [point for point in measured if ended or point.step <= step]
        return bool(self.points)

    def measure(self, model: Any, step: int) -> dict[str, float]:
        """Measure the model in float32, without changing it or the training's random numbers; return figures."""
        self._policy.load_state_dict(model.state_dict())
        models, settings = [each.to(model.device) for each in (self._policy, self._reference)], self.settings
        with isolated_randomness(step):
            samples = sample(models[0], self.tokenizer, self._texts, settings.samples, settings)
        ours, reference = (log_probabilities(scored, samples, settings.temperature) for scored in models)
        texts = [response.text for response in samples]
        proxy = raw_rewards(self.reward, self.prompts, texts, step, self.scale)
        gold = [gold_reward(p.task or "", p.prompt, text) for p, text in zip(self.prompts, texts, strict=True)]
        rows = [
            {"task": p.task, "prompt": render(p.prompt), "response": text, "proxy": reward, "gold": score}
            for p, text, reward, score in zip(self.prompts, texts, proxy, gold, strict=True)
        ]
        write_file(self.folder / "samples" / f"{step:05d}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        lengths = [len(response.response) for response in samples]
        slope = slope_within([prompt.task or "" for prompt in self.prompts], lengths, gold)
        length, mean_gold = float(np.mean(lengths)), float(np.mean(gold))
        worth, usual = (self.points[0].gold_per_token, self.points[0].length) if self.points else (slope, length)
        point = Point(
            step=step,
            kl=divergence(ours, reference),
            proxy=self.scale.normalize(float(np.mean(proxy))),
            gold=mean_gold,
            gold_per_token=slope,
            gold_same_length=mean_gold - worth * (length - usual),
            length=length,
            ended=float(np.mean([response.ended for response in samples])),
        )
        self.points.append(point)
        write_file(self.folder / "points.json", _POINTS.dump_json(self.points, indent=1))
        return {"proxy": point.proxy, "gold": point.gold, "KL": point.kl}


def divergence(policy: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """Estimate KL(policy ‖ reference) per response from the log-probabilities of its samples' tokens under both."""
    return float(np.mean([(p - r).double().sum() for p, r in zip(policy, reference, strict=True)]))


def slope_within(tasks: Sequence[str], lengths: Sequence[int], gold: Sequence[float]) -> float:
    """Return the least-squares slope of gold on length with a level for each task; 0 if no length differs."""
    x, y, names = np.array(lengths, float), np.array(gold), np.array(tasks)
    for task in set(tasks):
        x[names == task] -= x[names == task].mean()
        y[names == task] -= y[names == task].mean()
    return float(x @ y / (x @ x)) if x.any() else 0.0
