"""The custom reward functions for verl: `custom_reward_function.path=path/to/a/file/that/imports/this.py`.

verl calls `compute_score` for each sample, many at a time; a server runs the prompt once for calls that arrive
together. `compute_score_async` is the same for sources that are URLs, without a thread per call. A manager that passes
all samples at once, as `batch` of old releases, calls `compute_score_batch`. The manager `prime` accepts no dict:
`compute_reward` returns a float. verl does not pass the prompt, so the data must contain it in `extra_info`. The
functions follow verl's reward managers `naive` and `batch`. verl is not a dependency.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DataError
from ..scores import Score, log_columns
from .scoring import Sample, as_prompt, as_response, open_scorer, score_samples, score_samples_async, tasks_of

Info = Mapping[str, Any] | None


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: Info = None,
    reward_model: str | None = None,
    **_: Any,
) -> dict[str, float]:
    """Score a single response. See `compute_score_batch`."""
    return compute_score_batch([data_source], [solution_str], [ground_truth], [extra_info], reward_model)[0]


def compute_reward(
    data_source: str, solution_str: str, ground_truth: Any = None, extra_info: Info = None, **options: Any
) -> float:
    """Return the reward of a single response, for managers that accept no dict. See `compute_score_batch`."""
    return compute_score(data_source, solution_str, ground_truth, extra_info, **options)["score"]


def compute_score_batch(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Info],
    reward_model: str | None = None,
    **_: Any,
) -> list[dict[str, float]]:
    """Score responses to any prompts.

    Args:
        data_sources, ground_truths: ignored.
        solution_strs: the responses, with or without special tokens around them.
        extra_infos: per response its `prompt`, which is chat messages or a text (parsed if a chat template has rendered
            it), and optionally its `task`, which overrides the router.
        reward_model: a model folder, a hub name or a server's URL; by default the environment variable DMOERM_MODEL.
            verl reads it from `custom_reward_function.reward_kwargs`.

    Returns:
        For each response its reward as `score`, and the columns of `dmoerm.scores.log_columns`; all have the same keys.

    Raises:
        DataError: an `extra_info` has no prompt, a task is unknown, or a text is longer than the model's maximum.
        ConfigError: neither `reward_model` nor DMOERM_MODEL is set.
    """
    scorer = open_scorer(reward_model)
    samples = [_sample(*sample) for sample in zip(solution_strs, extra_infos, strict=True)]
    return _results(score_samples(scorer, samples), tasks_of(scorer))


async def compute_score_async(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: Info = None,
    reward_model: str | None = None,
    **_: Any,
) -> dict[str, float]:
    """Score a single response without blocking the event loop. See `compute_score_batch`.

    All calls of an event loop share one client of the server. A model of this process is scored in a thread.
    """
    sample = _sample(solution_str, extra_info)
    scorer = await asyncio.to_thread(open_scorer, reward_model)
    tasks = await asyncio.to_thread(tasks_of, scorer)
    return _results(await score_samples_async(scorer, [sample]), tasks)[0]


def _results(scores: Sequence[Score], tasks: Mapping[str, Sequence[str]]) -> list[dict[str, float]]:
    columns = {"score": [score.reward for score in scores], **log_columns(scores, tasks)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _sample(solution: str, extra_info: Info) -> Sample:
    """Return task, prompt and response of a sample. Raises `DataError` if it has no prompt."""
    info = extra_info or {}
    if info.get("prompt") is None:
        raise DataError(
            "has no prompt, which verl does not pass to a reward function",
            field="extra_info",
            value=extra_info,
            hint='add {"prompt": the text or the chat messages} to extra_info when you prepare the data set',
        )
    return info.get("task"), as_prompt(info["prompt"]), as_response(solution)
