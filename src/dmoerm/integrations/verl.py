"""A DMoERM as verl's custom reward function: `custom_reward_function.path=path/to/a/file/that/imports/this.py`.

`compute_score` is what verl calls for each sample, `compute_score_batch` what its batch reward manager calls for all of
them at once, so that a prompt runs once for all its responses. Neither is told the prompt: it must be in the data's
`extra_info`. Written against verl's reward managers `naive` and `batch`; verl itself is no dependency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmoerm.errors import DataError
from dmoerm.integrations.scoring import as_prompt, as_response, score_samples
from dmoerm.integrations.source import open_scorer, tasks_of
from dmoerm.schema import Prompt
from dmoerm.scores import log_columns


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    reward_model: str | None = None,
    **_: Any,
) -> dict[str, float]:
    """Scores one response. See `compute_score_batch`."""
    return compute_score_batch([data_source], [solution_str], [ground_truth], [extra_info], reward_model)[0]


def compute_score_batch(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None],
    reward_model: str | None = None,
    **_: Any,
) -> list[dict[str, float]]:
    """Scores responses of any prompts.

    Args:
        data_sources, ground_truths: not looked at.
        solution_strs: the responses, with or without special tokens around them.
        extra_infos: each one's `prompt`, a text (read back where a template has rendered it) or chat messages; and
            `task`, which forces the task, if it is there.
        reward_model: a model's folder or hub name, or a server's URL; None: what DMOERM_MODEL names. verl takes it from
            `custom_reward_function.reward_kwargs`.

    Returns:
        For each response `score`, the reward, and what `dmoerm.scores.log_columns` gives: the same names for all.

    Raises:
        DataError: `extra_info` has no prompt.
        ConfigError: neither `reward_model` nor DMOERM_MODEL is set.
    """
    scorer = open_scorer(reward_model)
    prompts = [_prompt(info) for info in extra_infos]
    tasks = [(info or {}).get("task") for info in extra_infos]
    samples = zip(tasks, prompts, map(as_response, solution_strs), strict=True)
    scores = score_samples(scorer, samples)
    columns = {"score": [score.reward for score in scores], **log_columns(scores, tasks_of(scorer))}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _prompt(extra_info: Mapping[str, Any] | None) -> Prompt:
    prompt = (extra_info or {}).get("prompt")
    if prompt is None:
        raise DataError(
            "verl tells a reward function no prompt, and there is none here",
            field="extra_info",
            value=extra_info,
            hint='add {"prompt": the text or the chat messages} to extra_info where the data set is made',
        )
    return as_prompt(prompt)
