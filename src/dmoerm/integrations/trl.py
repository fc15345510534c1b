"""The reward function for TRL's GRPOTrainer and RLOOTrainer: `reward_funcs=[reward_function(SOURCE)]`."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..scores import Score, contribution_name
from .scoring import Sample, Source, as_prompt, as_response, open_scorer, score_samples, score_samples_async


def reward_function(
    source: Source | None = None,
    *,
    tasks: Collection[str] | None = None,
    name: str = "dmoerm",
    asynchronous: bool = False,
) -> Any:
    """Return a reward function for `reward_funcs`.

    Args:
        source: see `open_scorer`. A text is opened at the first batch, so the function can be pickled.
        tasks: rows of other tasks get None, which TRL does not count as a reward, so that other functions can score
            them; by default all rows get a reward.
        name: the function's name in TRL's logs.
        asynchronous: whether TRL awaits the function, together with other asynchronous ones, instead of waiting for it.
    """
    return (AsyncRewardFunction if asynchronous else RewardFunction)(source, tasks, name)


class RewardFunction:
    """Rewards of completions. See `reward_function`."""

    def __init__(self, source: Source | None, tasks: Collection[str] | None, name: str) -> None:
        self.source, self.tasks, self.__name__ = source, tasks, name

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return one reward per completion, or None if its task is not in `tasks`. TRL calls this with keywords.

        Args:
            prompts, completions: texts or chat messages; a text that a chat template has rendered is parsed.
            columns: of the data set, of which `task` is read if it exists: each row's task, or None to let the router
                decide; and TRL's functions. `log_metric` receives the batch's means: `truncated`, `uncertainty`,
                `task/TASK` (the share of completions that the task's model scored), `TASK/CAPABILITY` and
                `contribution/TASK/CAPABILITY` (over that task's completions), and contributions of other scores, such
                as `contribution/per_task`. `log_extra` receives each completion's task, uncertainty and `truncated` for
                TRL's table.

        Raises:
            DataError: a prompt is empty, a message is not a chat message, a task is unknown, or a text is longer than
                the model's maximum.
        """
        samples = self._samples(prompts, completions, columns.get("task"))
        return self._rewards(samples, score_samples(open_scorer(self.source), samples.values()), len(prompts), columns)

    def _samples(
        self, prompts: Sequence[Any], completions: Sequence[Any], task: Sequence[str | None] | None
    ) -> dict[int, Sample]:
        """Return row → task, prompt and response of the rows that may be scored."""
        tasks = [None] * len(prompts) if task is None else task
        rows = zip(tasks, map(as_prompt, prompts), map(as_response, completions), strict=True)
        return {row: sample for row, sample in enumerate(rows) if sample[0] is None or self._accepts(sample[0])}

    def _rewards(
        self, samples: Mapping[int, Sample], scored: Sequence[Score], rows: int, columns: Mapping[str, Any]
    ) -> list[float | None]:
        """Log the scores of the rows whose task is accepted, and return their rewards; None for the others."""
        by_row = zip(samples, scored, strict=True)
        scores = {row: score for row, score in by_row if self._accepts(samples[row][0] or score.task)}
        if log_metric := columns.get("log_metric"):
            for metric, values in _metrics(list(scores.values())).items():
                log_metric(metric, statistics.fmean(values))
        if log_extra := columns.get("log_extra"):
            in_order = [scores.get(row) for row in range(rows)]
            for column in ("task", "uncertainty", "truncated"):
                log_extra(f"{self.__name__}/{column}", [score and getattr(score, column) for score in in_order])
        return [scores[row].reward if row in scores else None for row in range(rows)]

    def _accepts(self, task: str | None) -> bool:
        return self.tasks is None or task in self.tasks


class AsyncRewardFunction(RewardFunction):
    """Rewards of completions, awaited: by one client per server and event loop, or a model in a thread."""

    async def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """Return the rewards as `RewardFunction` does."""
        samples = self._samples(prompts, completions, columns.get("task"))
        scorer = await asyncio.to_thread(open_scorer, self.source)
        return self._rewards(samples, await score_samples_async(scorer, samples.values()), len(prompts), columns)


def _metrics(scores: Sequence[Score]) -> dict[str, list[float]]:
    """Return the values of each metric, whose means are logged."""
    metrics: dict[str, list[float]] = {}
    for score in scores:
        metrics.setdefault("truncated", []).append(float(score.truncated))
        if score.uncertainty is not None:
            metrics.setdefault("uncertainty", []).append(score.uncertainty)
        for task in score.route:
            metrics.setdefault(f"task/{task}", []).append(float(task == score.task))
        for capability, value in score.capabilities.items():
            metrics.setdefault(f"{score.task}/{capability}", []).append(value)
        for name, value in score.contributions.items():
            metrics.setdefault(contribution_name(score.task, name), []).append(value)
    return metrics
