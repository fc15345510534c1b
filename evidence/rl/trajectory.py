"""The measurements of a run of policy optimization, stored as JSON with a versioned schema."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dmoerm.evaluation.results import read_model
from dmoerm.io.paths import write_file
from evidence.rl.policy_settings import RLConfig
from evidence.rl.rewards import Scale


class Point(BaseModel):
    """One measurement, on new samples for the held-out prompts.

    Attributes:
        step: optimizer steps completed.
        proxy: mean reward that the policy is optimized against, not normalized.
        gold: mean gold reward; `gold_error` is its standard error over prompts.
        gold_by_task: mean gold reward of each task.
        gold_per_token: by how much gold rises with each token of a response, within tasks: a least-squares fit to the
            samples. None in files of earlier versions.
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
    gold_per_token: float | None = None
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
        version: the version of the schema (`schema` in the file).
        method: the reward model's name.
        policy: the name of the initial policy's folder.
        parameters: the number of the policy's parameters, including embeddings.
        settings: the run's settings.
        scale: the statistics by which rewards are normalized.
        points: the measurements in the order of their steps; the first is before the first step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    version: Literal[1] = Field(default=1, alias="schema")
    method: str
    policy: str
    parameters: int
    settings: RLConfig
    scale: Scale
    points: tuple[Point, ...] = Field(min_length=1)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.settings.seed

    @property
    def beta(self) -> float:
        """The weight of the KL penalty."""
        return self.settings.beta

    @property
    def algorithm(self) -> str:
        """`rloo`, `grpo` or `ppo`."""
        return self.settings.algorithm

    def gold_same_length(self, point: Point) -> float | None:
        """Return a point's gold without what more or fewer tokens are worth to the initial policy's responses."""
        first = self.points[0]
        if first.gold_per_token is None:
            return None
        return point.gold - first.gold_per_token * (point.length - first.length)


def write_trajectory(path: Path, trajectory: Trajectory) -> None:
    """Write a trajectory as JSON, completely or not at all. Raise `CheckpointError` if it cannot be written."""
    write_file(path, trajectory.model_dump_json(by_alias=True, indent=1) + "\n")


def read_trajectory(path: Path) -> Trajectory:
    """Read a trajectory. Raise `DataError` if it is missing or has another schema."""
    return read_model(path, Trajectory, "give the trajectory.json that `dmoerm rl` wrote")
