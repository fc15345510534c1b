"""Measurements on held-out prompts: every run has the same prompts and, at each step, the same random numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerBase

from dmoerm.io.paths import write_file
from evidence.rl.policy import load_policy, render
from evidence.rl.policy_settings import RLConfig
from evidence.rl.rewards import Gold, Reward, RLPrompt, Scale, raw_rewards
from evidence.rl.sampling import (
    Divergence,
    Sample,
    divergence,
    isolated_randomness,
    log_probabilities,
    sample,
    sampling_settings,
)
from evidence.rl.trajectory import Point

_POINTS = TypeAdapter(list[Point])


class Meter:
    """Measures a policy and stores the measurements in `folder`."""

    def __init__(
        self,
        policy: Path,
        tokenizer: PreTrainedTokenizerBase,
        reward: Reward,
        gold: Gold,
        prompts: Sequence[RLPrompt],
        scale: Scale,
        settings: RLConfig,
        folder: Path,
    ) -> None:
        self.tokenizer, self.reward, self.gold = tokenizer, reward, gold
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

    def measure(self, model: Any, step: int) -> Point:
        """Measure the model in float32, without changing it or the training's random numbers."""
        self._policy.load_state_dict(model.state_dict())
        policy, reference = self._policy.to(model.device), self._reference.to(model.device)
        temperature = self.settings.temperature
        generation = sampling_settings(self.tokenizer, self.settings.max_new_tokens, temperature)
        with isolated_randomness(step):
            samples = sample(policy, self.tokenizer, self._texts, self.settings.samples, generation)
        ratios = [log_probabilities(scored, samples, temperature) for scored in (policy, reference)]
        point = self._point(step, samples, divergence(*ratios))
        self.points.append(point)
        write_file(self.folder / "points.json", _POINTS.dump_json(self.points, indent=1))
        return point

    def _point(self, step: int, samples: Sequence[Sample], kl: Divergence) -> Point:
        texts = [response.text for response in samples]
        proxy = raw_rewards(self.reward, self.prompts, texts, step, self.scale)
        gold = [float(self.gold(p.task, p.prompt, text)) for p, text in zip(self.prompts, texts, strict=True)]
        lengths = [len(response.response) for response in samples]
        self._write_samples(step, texts, proxy, gold)
        by_prompt = np.reshape(gold, (-1, self.settings.samples)).mean(axis=1)
        return Point(
            step=step,
            proxy=float(np.mean(proxy)),
            gold=float(np.mean(gold)),
            gold_error=float(by_prompt.std(ddof=1) / np.sqrt(len(by_prompt))) if len(by_prompt) > 1 else 0.0,
            gold_by_task=self._by_task(gold),
            gold_per_token=slope_within([prompt.task or "" for prompt in self.prompts], lengths, gold),
            kl=kl.kl,
            kl_error=kl.kl_error,
            kl_k3=kl.kl_k3,
            length=float(np.mean(lengths)),
            ended=float(np.mean([response.ended for response in samples])),
            distinct=len(set(texts)) / len(texts),
            empty=float(np.mean([not text for text in texts])),
        )

    def _by_task(self, gold: Sequence[float]) -> dict[str, float]:
        tasks: dict[str, list[float]] = {}
        for prompt, value in zip(self.prompts, gold, strict=True):
            tasks.setdefault(prompt.task or "", []).append(value)
        return {task: float(np.mean(values)) for task, values in sorted(tasks.items())}

    def _write_samples(self, step: int, texts: Sequence[str], proxy: Sequence[float], gold: Sequence[float]) -> None:
        """Write the responses, one per line."""
        rows = zip(self.prompts, texts, proxy, gold, strict=True)
        lines = [
            json.dumps({"task": p.task, "prompt": render(p.prompt), "response": t, "proxy": r, "gold": g})
            for p, t, r, g in rows
        ]
        write_file(self.folder / "samples" / f"{step:05d}.jsonl", "\n".join(lines) + "\n")


def slope_within(tasks: Sequence[str], lengths: Sequence[int], gold: Sequence[float]) -> float:
    """Return the least-squares slope of gold on length with a level for each task; 0 if no length differs."""
    x, y, names = np.array(lengths, float), np.array(gold), np.array(tasks)
    for task in set(tasks):
        x[names == task] -= x[names == task].mean()
        y[names == task] -= y[names == task].mean()
    return float(x @ y / (x @ x)) if x.any() else 0.0
