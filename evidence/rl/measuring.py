"""Measurements on held-out prompts: every run has the same prompts and, at each step, the same random numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from transformers import PreTrainedTokenizerBase

from dmoerm.io.paths import write_file
from evidence.rl.policy import RLConfig, load_policy, render
from evidence.rl.sampling import (
    Divergence,
    Reward,
    RLPrompt,
    Sample,
    Scale,
    divergence,
    isolated_randomness,
    log_probabilities,
    raw_rewards,
    sample,
)
from evidence.testbed import gold_reward


class Point(BaseModel):
    """One measurement, on new samples for the held-out prompts.

    Attributes:
        step: optimizer steps completed.
        proxy: mean reward that the policy is optimized against, not normalized.
        gold: mean gold reward; `gold_error` is its standard error over prompts.
        gold_by_task: mean gold reward of each task.
        gold_per_token: by how much gold rises with each token of a response, within tasks: a least-squares fit to the
            samples.
        kl: KL to the initial policy in nats per response, from the log-ratio of the sampled tokens (unbiased, may be
            slightly negative near 0); `kl_error` is its standard error.
        kl_k3: the KL by the nonnegative estimator.
        length: mean tokens of a response, including the end token.
        ended: share of the responses that end with the end token.
        distinct: number of distinct responses over number of responses.
        empty: share of the responses without text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    step: int = Field(ge=0)
    proxy: float
    gold: float
    gold_error: float
    gold_by_task: dict[str, float]
    gold_per_token: float
    kl: float
    kl_error: float
    kl_k3: float
    length: float
    ended: float
    distinct: float
    empty: float


class Trajectory(BaseModel):
    """One run: a reward model, a KL weight and a seed.

    Attributes:
        method: the reward model's name.
        policy: the name of the initial policy's folder.
        parameters: the number of the policy's parameters, including embeddings.
        settings: the run's settings.
        scale: the statistics by which rewards are normalized.
        points: the measurements in the order of their steps; the first is before the first step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: str
    policy: str
    parameters: int
    settings: RLConfig
    scale: Scale
    points: tuple[Point, ...] = Field(min_length=1)

    def gold_same_length(self, point: Point) -> float:
        """Return a point's gold without what more or fewer tokens are worth to the initial policy's responses."""
        first = self.points[0]
        return point.gold - first.gold_per_token * (point.length - first.length)


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
        policy, reference = self._policy.to(model.device), self._reference.to(model.device)
        with isolated_randomness(step):
            samples = sample(policy, self.tokenizer, self._texts, self.settings.samples, self.settings)
        ratios = [log_probabilities(scored, samples, self.settings.temperature) for scored in (policy, reference)]
        point = self._point(step, samples, divergence(*ratios))
        self.points.append(point)
        write_file(self.folder / "points.json", _POINTS.dump_json(self.points, indent=1))
        return {"proxy": point.proxy, "gold": point.gold, "KL": point.kl}

    def _point(self, step: int, samples: Sequence[Sample], kl: Divergence) -> Point:
        texts = [response.text for response in samples]
        proxy = raw_rewards(self.reward, self.prompts, texts, step, self.scale)
        gold = [gold_reward(p.task or "", p.prompt, text) for p, text in zip(self.prompts, texts, strict=True)]
        lengths = [len(response.response) for response in samples]
        rows = [
            {"task": p.task, "prompt": render(p.prompt), "response": text, "proxy": reward, "gold": score}
            for p, text, reward, score in zip(self.prompts, texts, proxy, gold, strict=True)
        ]
        write_file(self.folder / "samples" / f"{step:05d}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        by_task: dict[str, list[float]] = {}
        for prompt, value in zip(self.prompts, gold, strict=True):
            by_task.setdefault(prompt.task or "", []).append(value)
        by_prompt = np.reshape(gold, (-1, self.settings.samples)).mean(axis=1)
        return Point(
            step=step,
            proxy=float(np.mean(proxy)),
            gold=float(np.mean(gold)),
            gold_error=float(by_prompt.std(ddof=1) / np.sqrt(len(by_prompt))) if len(by_prompt) > 1 else 0.0,
            gold_by_task={task: float(np.mean(values)) for task, values in sorted(by_task.items())},
            gold_per_token=slope_within([prompt.task or "" for prompt in self.prompts], lengths, gold),
            **kl._asdict(),
            length=float(np.mean(lengths)),
            ended=float(np.mean([response.ended for response in samples])),
            distinct=len(set(texts)) / len(texts),
            empty=float(np.mean([not text for text in texts])),
        )


def slope_within(tasks: Sequence[str], lengths: Sequence[int], gold: Sequence[float]) -> float:
    """Return the least-squares slope of gold on length with a level for each task; 0 if no length differs."""
    x, y, names = np.array(lengths, float), np.array(gold), np.array(tasks)
    for task in set(tasks):
        x[names == task] -= x[names == task].mean()
        y[names == task] -= y[names == task].mean()
    return float(x @ y / (x @ x)) if x.any() else 0.0
