"""What a run of policy optimization measured along the way, on disk as JSON of a versioned schema."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import DataError
from ..io.paths import write_file
from .rewards import Scale
from .settings import RLConfig


class Point(BaseModel):
    """One measurement: fresh samples to the held-out prompts.

    Attributes:
        step: optimizer steps made.
        proxy: mean reward of the reward model optimized against, as it gives it.
        gold: mean gold reward; `gold_error` is its standard error over prompts.
        gold_by_task: the same for each task.
        kl: KL to the initial policy in nats a response, from the log-ratio of the sampled tokens (unbiased, may be
            slightly negative near 0); `kl_error` is its standard error.
        kl_k3: the same by the nonnegative estimator.
        length: mean tokens of a response, the end token counted.
        ended: share of the responses that end by the end token.
        distinct: distinct responses' texts over responses.
        empty: share of the responses without text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    step: int = Field(ge=0)
    proxy: float
    gold: float
    gold_error: float
    gold_by_task: dict[str, float]
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
        version: of the schema (`schema` in the file).
        method: the reward model's name.
        policy: the initial policy's folder name.
        parameters: the policy's parameters, embeddings included.
        settings: of the run.
        scale: what rewards were normalized by before optimization.
        points: in the order of their steps, the first before the first step.
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
        """`rloo` or `grpo`."""
        return self.settings.algorithm


def write_trajectory(path: Path, trajectory: Trajectory) -> None:
    """Writes a trajectory as JSON, completely or not at all. Raises `CheckpointError` where it cannot be written."""
    write_file(path, trajectory.model_dump_json(by_alias=True, indent=1) + "\n")


def read_trajectory(path: Path) -> Trajectory:
    """Reads a trajectory. Raises `DataError` if it is missing or has another schema."""
    hint = "give the trajectory.json that `dmoerm rl` wrote"
    try:
        return Trajectory.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", file=path, hint=hint) from None
    except ValidationError as error:
        detail = error.errors()[0]
        field = ".".join(str(part) for part in detail["loc"])
        if field == "schema":
            hint = "this version reads schema 1; install the version of dmoerm that wrote the file"
        raise DataError(detail["msg"], file=path, field=field or None, hint=hint) from None
