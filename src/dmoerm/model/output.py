"""The scores of one pass, intermediate ones included. Shapes: Q prompts, N responses, k capabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .routing import Choice
from .task_model import TaskOutput


@dataclass(frozen=True)
class TaskRows:
    """One task's scores of some of the responses.

    Attributes:
        rows: the indices of the scored responses, ascending; M of the N.
        scores: reward, capabilities, uncertainty and phase-1 score, M rows each.
    """

    rows: Sequence[int]
    scores: TaskOutput


@dataclass(frozen=True)
class PassOutput:
    """All scores of the N responses to Q prompts.

    Attributes:
        owner: (N,), each response's prompt.
        choices: (Q,), what gives the reward.
        general: (N,), the general model's raw score; nan for a response whose reward does not depend on it.
        tasks: task → its scores of the responses to the prompts for which the task was requested.
        reward: (N,), calibrated; not bounded, and without the rule for empty responses.
        uncertainty: (N,), the rewards' standard deviations; nan without a posterior.
    """

    owner: Sequence[int]
    choices: Sequence[Choice]
    general: Tensor
    tasks: Mapping[str, TaskRows]
    reward: Tensor
    uncertainty: Tensor

    def of(self, prompt: int, task: str) -> TaskOutput:
        """Return a task's scores of the responses to one prompt."""
        output = self.tasks[task]
        kept = [i for i, row in enumerate(output.rows) if self.owner[row] == prompt]
        return TaskOutput(*(part[kept] for part in output.scores))
