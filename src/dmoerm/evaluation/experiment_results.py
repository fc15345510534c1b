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
    """The methods with the training labels as they come, or with a share of them reversed."""

    flip_scores: float
    flip_capabilities: float
    accuracy: dict[str, dict[str, Estimate]]
    """Method → task (and `mean`) → share of the ordered pairs put in the same order, the mean over seeds."""
    paired: dict[str, dict[str, Difference]]
    """`dmoerm - method` → task → how much higher dmoerm's is, on the same pairs."""
    by_seed: dict[str, dict[str, float]]
    """Seed → method → mean accuracy over tasks."""
    capabilities: dict[str, dict[str, Estimate]]
    """Task → capability → accuracy of dmoerm's expert."""
    router: RouterResult
    calibration: dict[str, CalibrationResult]
    """Method → calibration of its win probabilities, at a temperature fitted on the validation prompts."""
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
    """What each method had to learn from."""
    versions: dict[str, str]
    overlap: Overlap | None = None
    """Held-out prompts that a method trained elsewhere was trained on; of the run with most of them."""
    methods: dict[str, str]
    """Method → what it is."""
    conditions: dict[str, Condition]
    costs: dict[str, Cost]
    """Method → what it takes, in the first cell."""
    derived_tasks: tuple[str, ...]
    """Tasks whose overall scores were computed from capability grades: no person gave them."""
    gold_tasks: tuple[str, ...]
    """Tasks of the testbed, compared with its gold reward."""


class CurveFit(ResultModel):
    """R(d) = d (α − β d) for best-of-n, d (α − β log d) for a policy; d = √KL, R above that at d = 0."""

    alpha: float
    beta: float
    peak: float | None
    """The d at which the fit is highest; None: it does not fall."""
    peak_low: float | None = None
    peak_high: float | None = None
    value: float | None = None
    """The fit at its peak."""


class MethodCurve(ResultModel):
    """One method's best of n, the mean over prompts and seeds."""

    proxy: tuple[float, ...]
    """In standard deviations of the prompt's samples."""
    gold: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    """95 %, by bootstrap over prompts."""
    fit: CurveFit | None
    falls_after: int | None
    """The n of the highest gold, where a later n is below it with 95 % confidence."""


class BestOfNCondition(ResultModel):
    """All methods under one condition."""

    curves: dict[str, dict[str, MethodCurve]]
    """Task (and `all`) → method → its curve."""
    at_the_end: dict[str, dict[str, Difference]]
    """Task (and `all`) → `dmoerm - method` → how much higher dmoerm's gold is at the largest n."""


class BestOfNResults(Document):
    """results.json of `dmoerm bon`."""

    kind: Literal["best_of_n"] = "best_of_n"
    command: str
    config: dict[str, Any]
    seeds: tuple[int, ...]
    versions: dict[str, str]
    source: str
    """Where the samples come from."""
    overlap: Overlap | None = None
    """Prompts of the source that were trained on; None: it has none by construction."""
    ns: tuple[int, ...]
    kl: tuple[float, ...]
    """log n − (n − 1) / n, nats."""
    prompts: dict[str, int]
    samples: int
    """Fewest samples of a prompt."""
    conditions: dict[str, BestOfNCondition]


class PolicyPoint(ResultModel):
    """One measurement on held-out prompts."""

    step: int
    kl: float
    """To the initial policy, nats a response."""
    proxy: float
    """The reward optimized, in standard deviations of its rewards of the initial policy."""
    gold: float
    length: float
    """Tokens of a response."""


class PolicyRun(ResultModel):
    """One policy."""

    condition: str
    method: str
    beta: float
    """Weight of the KL penalty."""
    seed: int
    points: tuple[PolicyPoint, ...]


class PolicySummary(ResultModel):
    """A method under one condition and KL weight, the mean over seeds at the same steps."""

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
    kl: float
    """At the end."""
    fall: float
    """From the peak to the end: the overoptimization."""
    fit: CurveFit | None
    """R(d) = d (α − β log d), d = √KL, over all points of all seeds."""


class PolicyResults(Document):
    """results.json of `dmoerm rl`."""

    kind: Literal["rl"] = "rl"
    command: str
    config: dict[str, Any]
    """The reward models' settings."""
    policy: dict[str, Any]
    """The policy's settings."""
    settings: dict[str, Any]
    """The optimization's settings."""
    parameters: int
    """Of the policy, embeddings included."""
    versions: dict[str, str]
    runs: tuple[PolicyRun, ...]
    summaries: tuple[PolicySummary, ...]
    paired: dict[str, dict[str, Difference]]
    """Condition → `dmoerm - method (beta)` → how much higher dmoerm's gold is at the end, over seeds; two seeds give a
    range rather than an interval."""
