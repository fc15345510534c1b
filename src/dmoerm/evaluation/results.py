"""results.json: the machine-readable results of a run or an evaluation, written and read without torch."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..chat.truncation import TruncationCounts
from ..names import folder_name

MEAN = "mean"
"""The entry with the mean over the tasks."""
MEAN_HUMAN = "mean_human"
"""The entry with the mean over the tasks with human scores; absent unless other tasks' scores were derived."""
SUMMARIES = (MEAN, MEAN_HUMAN)
"""The entries that summarize several tasks."""

METHODS = {
    "general": "one model trained on all tasks: the single reward model",
    "per_task_routed": "one model per task; the router chooses the likeliest task",
    "per_task": "oracle: one model per task, given the task",
    "all_labels_routed": "one model per task on overall and capability pairs; the router chooses the likeliest task",
    "all_labels": "oracle: one model per task on overall and capability pairs, given the task",
    "dmoerm": "router, experts and aggregator end to end: the router alone chooses the task",
}
"""Method → description, for the methods of the product."""
_MANY = 0.5
"""The share of unrecognized prompts above which the results warn."""
_NAMED_PAIRS = 3  # of tasks that the router confuses
_PACKAGES = ("torch", "transformers", "peft", "dmoerm")


class ResultModel(BaseModel):
    """A part of a results file. Unknown fields, as later versions may add, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Estimate(ResultModel):
    """A share of pairs with its 95 % bootstrap interval over prompts and, if there are several, seeds."""

    value: float = Field(ge=0, le=1)
    low: float
    high: float
    pairs: int
    """Human-ordered pairs, without ties."""
    prompts: int
    """Distinct prompts of these pairs, which the bootstrap resamples."""

    @property
    def percent(self) -> str:
        """The value and its interval in percent, as text."""
        return f"{100 * self.value:.1f} ({100 * self.low:.1f}–{100 * self.high:.1f})"


class Difference(ResultModel):
    """A difference between two methods on the same pairs, with its 95 % interval from the same resamples."""

    value: float
    low: float
    high: float

    @property
    def percent(self) -> str:
        """The difference and its interval in signed percentage points, as text."""
        return f"{100 * self.value:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


class Overlap(ResultModel):
    """Overlap of evaluation data with the model's training prompts."""

    known: bool
    """False: neither the checkpoint nor its run's data lists the training prompts."""
    groups: int
    """Groups of the data with a training prompt."""
    prompts: int
    """Distinct prompts of those groups."""
    included: bool
    """Whether those groups are measured."""

    @property
    def description(self) -> str:
        """The measured prompts in words, for a title."""
        if not self.known:
            return "prompts whose overlap with the training prompts is unknown"
        if self.included and self.groups:
            return f"prompts, {self.prompts} of which the model was trained on"
        return "held-out prompts"

    @property
    def remark(self) -> str | None:
        """A sentence about the overlap, or None if there is no overlap."""
        if not self.known:
            return "It is not known which prompts the model was trained on; accuracy on training prompts is too high."
        if not self.groups:
            return None
        state = "included: accuracy on them is too high" if self.included else "left out"
        return f"The model was trained on {self.prompts} of the prompts ({self.groups} groups); they are {state}."


class RouterResult(ResultModel):
    """Accuracy of the router: how often the likeliest task of a prompt is its true task."""

    accuracy: float | None
    """Over the distinct prompts whose task is known; None if there are none."""
    prompts: int
    fallback: float | None
    """Share of those prompts below the confidence threshold, which the general model scores."""
    ece: float | None = None
    """Expected calibration error of the largest probability on these prompts; None if unknown."""
    confusion: dict[str, dict[str, int]]
    """True task → likeliest task → prompts."""


class Bin(ResultModel):
    """The pairs whose likelier winner has a probability in [low, high)."""

    low: float
    high: float
    pairs: int
    confidence: float | None
    """Mean probability of the likelier winner; None if the bin is empty."""
    accuracy: float | None
    """Share of the pairs in which people prefer the likelier winner; None if the bin is empty."""


class CalibrationResult(ResultModel):
    """Calibration of a method's win probability."""

    ece: float
    """Expected calibration error: the mean over pairs of |accuracy − confidence| of the pair's bin."""
    pairs: int
    bins: tuple[Bin, ...]


class LengthBias(ResultModel):
    """Mean correlation of score and response length (in characters) over the responses to one prompt."""

    spearman: float
    pearson: float
    groups: int
    """Groups in which both lengths and scores differ."""


class ShownPair(ResultModel):
    """A label that the model contradicts, with the texts; long texts are without their middle.

    Two numbers are of the preferred and of the other response; a label of the training part has none.
    """

    id: str
    """The group's."""
    task: str
    capability: str | None = None
    """The label's capability; None for the overall preference."""
    prompt: str
    preferred: str
    """The response that the label prefers."""
    other: str
    probability: float = Field(ge=0, le=1)
    """Of the label, by the model; for the training part, by a model that was not trained on it."""
    rewards: tuple[float, float] | None = None
    uncertainty: tuple[float, float] | None = None
    """Standard deviations of the rewards; None if the model has no posterior."""
    capabilities: dict[str, tuple[float, float]] = {}
    """Scores on the task's capabilities."""


class LabelDoubts(ResultModel):
    """How many labels of the training part held-out scores contradict, and which most."""

    judged: int
    """Labels with a held-out score."""
    contradicted: int
    """Labels with a probability below 0.5."""
    worst: tuple[ShownPair, ...]
    """The least probable labels, one per prompt."""


class ErrorAnalysis(ResultModel):
    """Where `dmoerm` orders pairs against people."""

    worst: tuple[ShownPair, ...]
    """The least probable preferences, one per prompt."""
    by_length: dict[str, Estimate]
    """Part of the pairs → accuracy."""
    by_agreement: dict[str, Estimate]
    """Part of the pairs → accuracy; empty without grades of several annotators."""
    doubts: LabelDoubts | None = None
    """Labels that may be wrong; None if not judged, as outside of `train`."""


class Document(ResultModel):
    """A results file, which starts with the version of its schema."""

    schema_version: Literal[2] = Field(default=2, alias="schema")

    model_config = ConfigDict(
        frozen=True, extra="ignore", use_attribute_docstrings=True, validate_by_name=True, validate_by_alias=True
    )

    def to_json(self) -> str:
        """Return the text of the file."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


class Measured(ResultModel):
    """What all results have. `accuracy` and `paired` contain each task and `mean`."""

    router: RouterResult
    accuracy: dict[str, dict[str, Estimate]]
    """Method → task → share of human-ordered pairs that the method orders the same way, the mean over seeds."""
    paired: dict[str, dict[str, Difference]]
    """`a - b` → task → accuracy of a minus that of b, on the same pairs."""
    capabilities: dict[str, dict[str, Estimate]]
    """Task → capability → share of the capability's ordered pairs that its expert orders the same way."""
    length_bias: dict[str, LengthBias]
    """Method (and `human`: the grades by people) → correlation with length within a prompt."""
    weights: dict[str, dict[str, float]] = {}
    """Task → score → its weight in the reward, the mean over seeds; empty without an aggregator of weights."""


class ReportDocument(Document):
    """What the results that have a page say about their origin."""

    command: str
    date: str = ""
    """The day of the measurement, such as 2026-01-31."""
    folder: str = ""
    """The folder of the run, comparison or model, or the model's hub name."""
    data: tuple[str, ...] = ()
    """The measured files; of the files of a run, the held-out part."""
    config: dict[str, Any]
    """The resolved settings that the model was trained with; empty if they are not known."""
    versions: dict[str, str]
    methods: dict[str, str] = METHODS
    """Method → its description."""
    derived_tasks: tuple[str, ...]
    """Tasks whose overall scores were computed from capability grades, not given by people."""
    gold_tasks: tuple[str, ...] = ()
    """Tasks of the testbed, which are compared with its gold reward instead of human preferences."""

    @property
    def remarks(self) -> list[str]:
        """Sentences that the accuracy table needs beside it."""
        remarks = []
        if self.derived_tasks:
            remarks.append(
                "Tasks with *: the overall scores are computed from capability grades, not given by people; mean_human "
                "leaves them out."
            )
        if self.gold_tasks:
            tasks = ", ".join(self.gold_tasks)
            remarks.append(
                f"Generated groups ({tasks}): methods are compared with the generator's gold reward, not with people; "
                "training labels are simulated."
            )
        return remarks


class Results(Measured, ReportDocument):
    """The results of `train`, `eval` and `demo`."""

    seed: int
    overlap: Overlap
    """Overlap of the measured prompts with the training prompts."""
    truncation: dict[str, TruncationCounts] = {}
    """`evaluation` (the measured groups) and, after training, `training` → counts of truncated responses."""
    calibration: CalibrationResult
    errors: ErrorAnalysis
    """The worst pairs and parts."""
    time: dict[str, float]
    """Phase → seconds of training."""
    steps: dict[str, dict[str, float | None]]
    """Step → its training metrics."""
    peak_memory: int | None
    """Peak memory of this process in bytes; None if the system does not report it."""

    @property
    def tasks(self) -> list[str]:
        """The measured tasks."""
        return [task for task in next(iter(self.accuracy.values()), {}) if task not in SUMMARIES]

    @property
    def remarks(self) -> list[str]:
        """Sentences about the data and the router that the accuracy table needs beside it."""
        remarks = [self.overlap.remark] if self.overlap.remark else []
        purposes = {"training": "to train on", "evaluation": "to measure on"}
        for part, purpose in purposes.items():
            if part in self.truncation and (remark := self.truncation[part].description(purpose)):
                remarks.append(remark)
        if (unrecognized := self.router.fallback or 0.0) > _MANY:
            used = "never used" if unrecognized == 1 else f"used for {1 - unrecognized:.1%} only"
            remarks.append(
                f"Warning: the router does not recognize {unrecognized:.1%} of {self.router.prompts} prompts: the "
                f"general model scores them, and the mixture is {used}. Give prompts that are alike the same task, add "
                "prompts, set a lower router.threshold, or name the task of each prompt when you score."
            )
        remarks += routing_notes(self.steps.get("routing", {}), self.tasks)
        return remarks + super().remarks


def routing_notes(metrics: Mapping[str, float | None], tasks: Collection[str]) -> list[str]:
    """Return which tasks the router confuses and what that costs, and which tasks the general model scores.

    Args:
        metrics: of the step; `confused/A/B`, `cost/A/B` and `pooled/A` name tasks as folders do.
        tasks: the model's.
    """
    names = {folder_name(task): task for task in tasks}
    known = {name: value for name, value in metrics.items() if value is not None}
    notes: list[str] = []
    pairs = sorted((name for name in known if name.startswith("confused/")), key=lambda name: -known[name])
    for name in pairs[:_NAMED_PAIRS]:
        _, pair = name.split("/", 1)
        cost = known[f"cost/{pair}"]
        a, b = (names.get(folder, folder) for folder in pair.split("/"))
        notes.append(
            f"The router takes {known[name]:.0%} of the prompts of {a} and {b} for the other kind. With the task "
            f"given, accuracy on the two is {100 * abs(cost):.1f} points {'higher' if cost > 0 else 'lower'} "
            "(prompts of the training part, held out)."
        )
    pooled = {name.partition("/")[2]: value for name, value in known.items() if name.startswith("pooled/")}
    scored = [names.get(folder, folder) for folder, value in pooled.items() if value]
    if pooled and len(scored) == len(pooled) > 1:
        notes.append(
            "These kinds are alike, or have too few labels: held out, one model for all is as good. The general model "
            "scores all prompts."
        )
    elif scored:
        notes.append(f"The general model scores in place of {', '.join(scored)}: held out, their own heads are worse.")
    return notes


def score_weights(steps: Mapping[str, Mapping[str, float | None]], tasks: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return task → score → weight in the reward, by the phase 3 that the model uses; without tasks that have none.

    Args:
        steps: step → its training metrics.
    """
    form = "soft/" if steps.get("routing", {}).get("soft") else ""
    metrics = {task: steps.get(f"{form}phase3/{folder_name(task)}", {}) for task in tasks}
    prefix = "weight/"
    return {
        task: weights
        for task, row in metrics.items()
        if (weights := {n.removeprefix(prefix): w for n, w in row.items() if n.startswith(prefix) and w is not None})
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the numbers depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def phase_seconds(steps: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Sum the seconds of each phase over its steps: `phase2/chitchat` counts for `phase2`.

    Steps under `soft/` are parts of the step `routing`, whose seconds include theirs.
    """
    seconds: dict[str, float] = {}
    for name, metrics in steps.items():
        if (phase := name.partition("/")[0]) != "soft":
            seconds[phase] = seconds.get(phase, 0.0) + float(metrics.get("seconds", 0.0))
    return seconds


def peak_memory() -> int | None:
    """Return the peak memory of this process in bytes, or None if the system does not report it."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class MethodResults(Measured):
    """The methods of a comparison on the same held-out pairs, over all seeds."""

    by_seed: dict[str, dict[str, float]]
    """Seed → method → mean accuracy over tasks."""
    calibration: dict[str, CalibrationResult]
    """Method → calibration of its win probabilities, at a temperature fitted on the validation prompts; `dmoerm`: the
    model's own."""

    @property
    def best_first(self) -> list[str]:
        """The methods, highest mean first; methods without a mean are last."""
        means = {method: row[MEAN].value if MEAN in row else 0.0 for method, row in self.accuracy.items()}
        return sorted(means, key=lambda method: -means[method])


class Comparison(MethodResults, ReportDocument):
    """results.json of `dmoerm compare`."""

    kind: Literal["comparison"] = "comparison"
    seeds: tuple[int, ...]
