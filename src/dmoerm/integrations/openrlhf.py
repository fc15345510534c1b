"""A DMoERM as the reward-function file of OpenRLHF: `--reward.remote_url path/to/this_file.py`.

The model is read once, from the folder that the environment variable DMOERM_MODEL names. Written against the interface
that OpenRLHF 0.11 documents for such files; OpenRLHF itself is no dependency, and its own tests are not run here.

OpenRLHF executes this file by its path, outside of any package, so its imports are absolute.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch

from dmoerm.errors import ConfigError
from dmoerm.model import DMoERM
from dmoerm.rendered import conversation, response_text
from dmoerm.schema import Query

MODEL_VARIABLE = "DMOERM_MODEL"

EMPTY_REWARD = -3.0
"""What a response without text gets at most; rewards are about 0 on the mean, with standard deviation 1."""


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Any = None, **_: Any) -> dict[str, Any]:
    """Scores responses of any prompts.

    Args:
        queries: prompt and response as one text, special tokens kept.
        prompts: the prompts as the policy read them: in ChatML or Llama 3's format, or plain text.
        labels: not looked at.

    Returns:
        `rewards` and `scores`: (n,), the reward. `extra_logs`: name → (n,): `uncertainty`; `task/NAME`, 1 where that
        task's inner model scored; `NAME/CAPABILITY`, the capability's score, 0 where another task's scored. So the
        mean capability score on the task's responses is the mean of the one over the mean of the other.

    Raises:
        DataError: a query does not hold its prompt.
        ConfigError: DMOERM_MODEL is not set.
    """
    model = _model()
    texts = [response_text(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
    places: dict[str, list[int]] = {}
    for place, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        if text:
            places.setdefault(prompt, []).append(place)
    asked = [Query(prompt=conversation(p), responses=tuple(texts[i] for i in at)) for p, at in places.items()]
    found: dict[int, Any] = {}
    for at, scores in zip(places.values(), model.score_queries(asked) if asked else (), strict=True):
        found |= dict(zip(at, scores, strict=True))
    worst = min([EMPTY_REWARD, *(score.reward for score in found.values())])
    rewards = torch.tensor([found[i].reward if i in found else worst for i in range(len(texts))])
    return {"rewards": rewards, "scores": rewards.clone(), "extra_logs": _logs(model, found, len(texts))}


def _logs(model: DMoERM, found: dict[int, Any], count: int) -> dict[str, torch.Tensor]:
    """The same names for every batch, as OpenRLHF joins them over batches."""
    names = [f"{task}/{c}" for task, capabilities in model.config.tasks.items() for c in capabilities]
    logs = {n: torch.zeros(count) for n in ("uncertainty", *(f"task/{t}" for t in model.config.tasks), *names)}
    for place, score in found.items():
        logs["uncertainty"][place] = score.uncertainty or 0.0
        if score.task is not None:
            logs[f"task/{score.task}"][place] = 1.0
            for name, value in score.capabilities.items():
                logs[f"{score.task}/{name}"][place] = value
    return logs


@functools.cache
def _model() -> DMoERM:
    path = os.environ.get(MODEL_VARIABLE)
    if not path:
        raise ConfigError(
            f"{MODEL_VARIABLE} is not set; set it to the folder of a trained model, such as runs/mine/model"
        )
    model = DMoERM.from_pretrained(path)
    return model.to("cuda") if torch.cuda.is_available() else model  # pyright: ignore[reportArgumentType, reportReturnType]
