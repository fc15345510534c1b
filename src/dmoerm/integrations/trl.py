"""The reward function for TRL's GRPOTrainer and RLOOTrainer: `reward_funcs=[reward_function(SOURCE)]`."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ..schema import Prompt
from ..scores import Score
from .scoring import as_prompt, as_response, score_samples, score_samples_async
from .source import Source, open_scorer


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
            them; None: all rows get a reward.
        name: the function's name in TRL's logs.
        asynchronous: whether TRL awaits the function, together with other asynchronous ones, instead of waiting for it.
    """
    return (AsyncRewardFunction if asynchronous else RewardFunction)(source, tasks, name)


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
        """Return one reward per completion, or None if its task is not in `tasks`. TRL calls this with keywords.

        Args:
            prompts, completions: texts or chat messages; a text that a chat template has rendered is parsed.
            task: the data set's column `task`, if it has one: each row's task, or None to let the router decide.
            log_metric: receives the batch's means: `truncated`, `uncertainty`, `task/TASK` (the share of completions
                that the task's model scored), `TASK/CAPABILITY` (over that task's completions).
            log_extra: receives each completion's task, uncertainty and `truncated` for TRL's table of completions.

        Raises:
            DataError: a prompt is empty, a message is not a chat message, a task is unknown, or a text is longer than
                the model's maximum.
        """
        samples = self._samples(prompts, completions, task)
        scores = score_samples(open_scorer(self.source), samples.values())
        return self._rewards(dict(zip(samples, scores, strict=True)), task, len(prompts), log_metric, log_extra)

    def _samples(
        self, prompts: Sequence[Any], completions: Sequence[Any], task: Sequence[str | None] | None
    ) -> dict[int, tuple[str | None, Prompt, str]]:
        """Return row → task, prompt and response of the rows that may be scored."""
        row_tasks = [None] * len(prompts) if task is None else list(task)
        messages = [as_prompt(prompt) for prompt in prompts]
        rows = [row for row, name in enumerate(row_tasks) if name is None or self._accepts(name)]
        return {row: (row_tasks[row], messages[row], as_response(completions[row])) for row in rows}

    def _rewards(
        self,
        scored: Mapping[int, Score],
        task: Sequence[str | None] | None,
        rows: int,
        log_metric: Callable[[str, float], None] | None,
        log_extra: Callable[[str, list[Any]], None] | None,
    ) -> list[float | None]:
        """Log the scores of the rows whose task is accepted, and return their rewards; None for the others."""
        given: Sequence[str | None] = [None] * rows if task is None else task
        scores = {row: score for row, score in scored.items() if self._accepts(given[row] or score.task)}
        if log_metric is not None:
            for metric, values in _metrics(list(scores.values())).items():
                log_metric(metric, statistics.fmean(values))
        if log_extra is not None:
            for column, values in _columns(scores, rows).items():
                log_extra(f"{self.__name__}/{column}", values)
        return [scores[row].reward if row in scores else None for row in range(rows)]

    def _accepts(self, task: str | None) -> bool:
        return self.tasks is None or task in self.tasks


class AsyncRewardFunction(RewardFunction):
    """Rewards of completions, awaited: by one client per server and event loop, or a model in a thread."""

    async def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        task: Sequence[str | None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """Return the rewards as `RewardFunction` does."""
        samples = self._samples(prompts, completions, task)
        scorer = await asyncio.to_thread(open_scorer, self.source)
        scores = await score_samples_async(scorer, samples.values())
        return self._rewards(dict(zip(samples, scores, strict=True)), task, len(prompts), log_metric, log_extra)


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
    return metrics


def _columns(scores: Mapping[int, Score], rows: int) -> dict[str, list[Any]]:
    """Return the columns for TRL's table of completions, with None in rows without a score."""
    row_scores = [scores.get(row) for row in range(rows)]
    return {
        "task": [score and score.task for score in row_scores],
        "uncertainty": [score and score.uncertainty for score in row_scores],
        "truncated": [score and score.truncated for score in row_scores],
    }
