"""A DMoERM as a reward function of TRL's GRPOTrainer and RLOOTrainer: `reward_funcs=[reward_function(SOURCE)]`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from dmoerm.integrations.scoring import as_prompt, as_response, score_samples
from dmoerm.integrations.source import Source, open_scorer
from dmoerm.scores import Score


def reward_function(source: Source | None = None, *, tasks: Collection[str] | None = None, name: str = "dmoerm") -> Any:
    """What TRL's trainers take in `reward_funcs`.

    Args:
        source: see `open_scorer`. Given as a text it is opened at the first batch, so that the function can be pickled.
        tasks: rows of other tasks get None, which is no reward to TRL, so that other functions can take those; None:
            all rows get one.
        name: in TRL's logs.
    """
    return RewardFunction(source, tasks, name)


class RewardFunction:
    """Rewards of completions. See `reward_function`."""

    def __init__(self, source: Source | None, tasks: Collection[str] | None, name: str) -> None:
        self.source, self.tasks, self.__name__ = source, tasks, name

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        task: Sequence[str | None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """One reward a completion; None where its task is none of `tasks`. TRL calls it with keywords.

        Args:
            prompts, completions: texts, or chat messages; a text that a chat template has rendered is read back.
            task: the data set's column of that name, if it has one: each row's task; None in it: routed.
            log_metric: is told the batch's means: `truncated`, `uncertainty`, `task/TASK` (the share that the task's
                task model scored), `TASK/CAPABILITY` (over that task's completions).
            log_extra: is told each completion's task, uncertainty and `truncated`, for TRL's table of completions.

        Raises:
            DataError: a prompt without text, no chat message, an unknown task, a text longer than the model takes.
        """
        told = [None] * len(prompts) if task is None else list(task)
        turns = [as_prompt(prompt) for prompt in prompts]
        asked = [row for row, name in enumerate(told) if name is None or self._takes(name)]
        samples = [(told[row], turns[row], as_response(completions[row])) for row in asked]
        scored = dict(zip(asked, score_samples(open_scorer(self.source), samples), strict=True))
        scores = {row: score for row, score in scored.items() if self._takes(told[row] or score.task)}
        if log_metric is not None:
            for metric, values in _metrics(list(scores.values())).items():
                log_metric(metric, statistics.fmean(values))
        if log_extra is not None:
            for column, values in _columns(scores, len(prompts)).items():
                log_extra(f"{self.__name__}/{column}", values)
        return [scores[row].reward if row in scores else None for row in range(len(prompts))]

    def _takes(self, task: str | None) -> bool:
        return self.tasks is None or task in self.tasks


def _metrics(scores: Sequence[Score]) -> dict[str, list[float]]:
    """Metric → what its mean is taken of."""
    metrics: dict[str, list[float]] = {}
    for score in scores:
        metrics.setdefault("truncated", []).append(float(score.truncated))
        if score.uncertainty is not None:
            metrics.setdefault("uncertainty", []).append(score.uncertainty)
        for task in score.route:
            metrics.setdefault(f"task/{task}", []).append(float(task == score.task))
        for capability, value in score.capabilities.items():
            metrics.setdefault(f"{score.task}/{capability}", []).append(value)
    return metrics


def _columns(scores: Mapping[int, Score], rows: int) -> dict[str, list[Any]]:
    """Columns of TRL's table of completions; None where there is no score."""
    found = [scores.get(row) for row in range(rows)]
    return {
        "task": [score and score.task for score in found],
        "uncertainty": [score and score.uncertainty for score in found],
        "truncated": [score and score.truncated for score in found],
    }
