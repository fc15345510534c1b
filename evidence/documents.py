"""The results files of experiments: comparisons under several conditions, best-of-n, policy optimization."""

from __future__ import annotations

from typing import Any, Literal

from dmoerm.evaluation.results import Difference, Document, MethodResults, ResultModel


class Condition(MethodResults):
    """The methods under one condition, such as a share of reversed training labels."""

    settings: dict[str, Any]
    """The changes that distinguish the runs of this condition; see conditions.py."""


class Experiment(Document):
    """The results of `python -m evidence.compare`."""

    kind: Literal["comparison"] = "comparison"
    command: str
    config: dict[str, Any]
    seeds: tuple[int, ...]
    members: int
    """Models in an ensemble."""
    versions: dict[str, str]
    methods: dict[str, str]
    """Method → its description."""
    conditions: dict[str, Condition]
    derived_tasks: tuple[str, ...]
    gold_tasks: tuple[str, ...]


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
    """best_of_n.json of `python -m evidence.bon`."""

    kind: Literal["best_of_n"] = "best_of_n"
    command: str
    config: dict[str, Any]
    seeds: tuple[int, ...]
    versions: dict[str, str]
    source: str
    """The source of the samples, in words."""
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
    """rl.json of `python -m evidence.policies`."""

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
    """Condition → `dmoerm - method (beta)` → difference of gold at the end; see `policies.differences`."""
