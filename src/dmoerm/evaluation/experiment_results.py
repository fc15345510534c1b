"""The result files of experiments: results.json of `dmoerm compare`, best_of_n.json and rl.json."""

from __future__ import annotations

from typing import Any, Literal

from .results import (
    CalibrationResult,
    Cost,
    Difference,
    Document,
    Estimate,
    LengthBias,
    Overlap,
    ResultModel,
    RouterResult,
)


class Condition(ResultModel):
    """The methods under one condition, such as a share of reversed training labels."""

    settings: dict[str, Any]
    """Settings, named `a.b`, that distinguish the runs of this condition."""
    accuracy: dict[str, dict[str, Estimate]]
    """Method → task (and `mean`) → share of the ordered pairs that it orders the same way, the mean over seeds."""
    paired: dict[str, dict[str, Difference]]
    """`dmoerm - method` → task → accuracy of dmoerm minus that of the method on the same pairs."""
    by_seed: dict[str, dict[str, float]]
    """Seed → method → mean accuracy over tasks."""
    capabilities: dict[str, dict[str, Estimate]]
    """Task → capability → accuracy of dmoerm's expert."""
    router: RouterResult
    calibration: dict[str, CalibrationResult]
    """Method → calibration of its win probabilities, at a temperature fitted on the validation prompts; `dmoerm`: the
    model's own."""
    length_bias: dict[str, LengthBias]
    """Method (and `human`) → correlation with length within a prompt."""


class Comparison(Document):
    """results.json of `dmoerm compare`."""

    kind: Literal["comparison"] = "comparison"
    command: str
    config: dict[str, Any]
    seeds: tuple[int, ...]
    members: int
    """Models in an ensemble."""
    budget: str
    """The data and training steps of each method, in words."""
    versions: dict[str, str]
    overlap: Overlap | None = None
    """Held-out prompts that an external method was trained on, in the run with most of them."""
    methods: dict[str, str]
    """Method → its description."""
    conditions: dict[str, Condition]
    costs: dict[str, Cost]
    """Method → its cost in the first run."""
    derived_tasks: tuple[str, ...]
    """Tasks whose overall scores were computed from capability grades, not given by people."""
    gold_tasks: tuple[str, ...]
    """Tasks of the testbed, which are compared with its gold reward."""


class CurveFit(ResultModel):
    """A fit R(d) = d (α − β d) for best-of-n or d (α − β log d) for a policy; d = √KL, R is the gain over d = 0."""

    alpha: float
    beta: float
    peak: float | None
    """The d at which the fit is highest; None: it does not fall."""
    peak_low: float | None = None
    peak_high: float | None = None
    value: float | None = None
    """The fit's value at its peak."""


class MethodCurve(ResultModel):
    """Best-of-n by one method, the mean over prompts and seeds."""

    proxy: tuple[float, ...]
    """The method's reward in standard deviations of the prompt's samples."""
    gold: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    """`low` to `high` is the 95 % interval of `gold` by bootstrap over prompts."""
    fit: CurveFit | None
    falls_after: int | None
    """The n of the highest gold, if a larger n is below it with 95 % confidence."""


class BestOfNCondition(ResultModel):
    """All methods under one condition."""

    curves: dict[str, dict[str, MethodCurve]]
    """Task (and `all`) → method → its curve."""
    at_the_end: dict[str, dict[str, Difference]]
    """Task (and `all`) → `dmoerm - method` → difference of gold at the largest n."""


class BestOfNResults(Document):
    """best_of_n.json of `dmoerm bon`."""

    kind: Literal["best_of_n"] = "best_of_n"
    command: str
    config: dict[str, Any]
    seeds: tuple[int, ...]
    versions: dict[str, str]
    source: str
    """The source of the samples, in words."""
    overlap: Overlap | None = None
    """Prompts of the source that were trained on; None: the source excludes them."""
    ns: tuple[int, ...]
    kl: tuple[float, ...]
    """log n − (n − 1) / n for each n, in nats."""
    prompts: dict[str, int]
    samples: int
    """The fewest samples of any prompt."""
    conditions: dict[str, BestOfNCondition]


class PolicyPoint(ResultModel):
    """One measurement on held-out prompts."""

    step: int
    kl: float
    """KL to the initial policy in nats per response."""
    proxy: float
    """The optimized reward in standard deviations of the initial policy's rewards."""
    gold: float
    gold_same_length: float | None = None
    """`gold` at the initial policy's length: without the slope of its gold on tokens times the change of the length."""
    length: float
    """Mean tokens of a response."""
    ended: float | None = None
    """Share of the responses that end with the end token."""


class PolicyRun(ResultModel):
    """One optimized policy."""

    condition: str
    method: str
    beta: float
    """Weight of the KL penalty."""
    seed: int
    points: tuple[PolicyPoint, ...]


class PolicySummary(ResultModel):
    """A method under one condition and KL weight: means over seeds at the same steps."""

    condition: str
    method: str
    beta: float
    seeds: int
    start: float
    """Gold of the initial policy."""
    peak: float
    """Highest gold."""
    peak_step: int
    end: float
    """Gold at the end."""
    end_same_length: float | None = None
    """`gold_same_length` at the end."""
    kl: float
    """KL at the end."""
    fall: float
    """Gold at the peak minus gold at the end: the overoptimization."""
    fall_low: float | None = None
    fall_high: float | None = None
    """`fall_low` to `fall_high` is Student's 95 % interval of `fall` over the seeds, with three of them or more."""
    fit: CurveFit | None
    """The fit over all points of all seeds."""


class PolicyResults(Document):
    """rl.json of `dmoerm rl`."""

    kind: Literal["rl"] = "rl"
    command: str
    config: dict[str, Any]
    """The reward models' settings."""
    policy: dict[str, Any]
    """The policy's settings."""
    settings: dict[str, Any]
    """The optimization's settings."""
    parameters: int
    """Parameters of the policy, including embeddings."""
    versions: dict[str, str]
    runs: tuple[PolicyRun, ...]
    summaries: tuple[PolicySummary, ...]
    paired: dict[str, dict[str, Difference]]
    """Condition → `dmoerm - method (beta)` → difference of gold at the end; see `experiments.policies.differences`."""
