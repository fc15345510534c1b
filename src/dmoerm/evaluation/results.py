"""results.json: the machine-readable result of a run or an evaluation (schema 2), written and read."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..chat.truncation import TruncationCounts
from ..errors import DataError
from ..io.paths import write_file

MEAN = "mean"
"""The entry that is the plain mean over the tasks."""
MEAN_HUMAN = "mean_human"
"""The mean over the tasks whose overall scores people gave; there only where other tasks' scores were derived."""
SUMMARIES = (MEAN, MEAN_HUMAN)
"""Entries beside the tasks."""

_PACKAGES = ("torch", "transformers", "peft", "dmoerm")


class ResultModel(BaseModel):
    """A part of a results file: fields that a later version adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


P = TypeVar("P", bound=ResultModel)


class Estimate(ResultModel):
    """A share of pairs, with its 95 % bootstrap interval over prompts."""

    value: float = Field(ge=0, le=1)
    low: float
    high: float
    pairs: int
    """Human-ordered pairs, ties left out."""
    prompts: int
    """Different prompts that these pairs belong to: what the interval resamples."""

    @property
    def percent(self) -> str:
        """In per cent, with its interval, as people read it."""
        return f"{100 * self.value:.1f} ({100 * self.low:.1f}–{100 * self.high:.1f})"


class Difference(ResultModel):
    """A difference between two methods on the same pairs, with its 95 % interval from the same resamples."""

    value: float
    low: float
    high: float

    @property
    def percent(self) -> str:
        """In points, signed, with its interval, as people read it."""
        return f"{100 * self.value:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


class Overlap(ResultModel):
    """Evaluation data whose prompts the model was trained on."""

    known: bool
    """False: neither the checkpoint nor its run's data says which prompts the model was trained on."""
    groups: int
    """Groups of the data with such a prompt."""
    prompts: int
    """Their distinct prompts."""
    included: bool
    """Whether those groups are among the measured ones."""

    @property
    def description(self) -> str:
        """Name the prompts that were measured, for a title."""
        if not self.known:
            return "prompts whose overlap with the training prompts is unknown"
        if self.included and self.groups:
            return f"prompts, {self.prompts} of which the model was trained on"
        return "held-out prompts"

    @property
    def remark(self) -> str | None:
        """Say what a reader must know about the overlap."""
        if not self.known:
            return (
                "It is not known which prompts the model was trained on; accuracy on trained prompts is too high. "
                "Models trained with this version carry a list of them."
            )
        if not self.groups:
            return None
        state = "included: accuracy on them is too high" if self.included else "left out"
        return f"The model was trained on {self.prompts} of the prompts ({self.groups} groups); they are {state}."


class RouterResult(ResultModel):
    """How often the likeliest task of a prompt is its own."""

    accuracy: float | None
    """Over the distinct prompts whose task is known; None where none is."""
    prompts: int
    fallback: float | None
    """Share of those prompts that fall below the threshold, so that the general model scores them."""
    confusion: dict[str, dict[str, int]]
    """Own task → likeliest task → prompts."""


class Bin(ResultModel):
    """Pairs whose likelier winner has a probability in [low, high)."""

    low: float
    high: float
    pairs: int
    confidence: float | None
    """Mean probability; None where the bin is empty."""
    accuracy: float | None
    """Share of the pairs whose likelier winner people prefer, too."""


class CalibrationResult(ResultModel):
    """Calibration of the win probability."""

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


class Cost(ResultModel):
    """A method's cost."""

    training_seconds: float
    parameters: int
    """Trained ones."""
    scoring_seconds: float
    """For the same texts under every method."""


class Document(ResultModel):
    """A results file: its schema's version first."""

    schema_version: Literal[2] = Field(default=2, alias="schema")

    model_config = ConfigDict(
        frozen=True, extra="ignore", use_attribute_docstrings=True, validate_by_name=True, validate_by_alias=True
    )

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


class Results(Document):
    """What `train`, `eval` and `demo` measure. `accuracy` and `paired` hold each task, and `mean`."""

    command: str
    config: dict[str, Any]
    """The resolved settings that the model was trained with; empty where they are not known."""
    seed: int
    versions: dict[str, str]
    derived_tasks: tuple[str, ...]
    """Tasks whose overall scores were computed from capability grades: no person gave them."""
    gold_tasks: tuple[str, ...] = ()
    """Tasks of the testbed, which are compared with its gold reward instead of with people."""
    overlap: Overlap
    """Measured prompts that the model was trained on."""
    truncation: dict[str, TruncationCounts] = {}
    """`evaluation` (the measured groups) and, after training, `training` → responses that were truncated."""
    router: RouterResult
    accuracy: dict[str, dict[str, Estimate]]
    """Method → task → share of human-ordered pairs that the method orders the same way."""
    paired: dict[str, dict[str, Difference]]
    """`a - b` → task → how much higher a's accuracy is."""
    capabilities: dict[str, dict[str, Estimate]]
    """Task → capability → share of the capability's ordered pairs that its expert orders the same way."""
    calibration: CalibrationResult
    length_bias: dict[str, LengthBias]
    """Method (and `human`: people's own grades) → correlation with length."""
    time: dict[str, float]
    """Phase → seconds of training."""
    steps: dict[str, dict[str, float | None]]
    """Step → how its training ended."""
    peak_memory: int | None
    """Bytes that this process took at most; None where the system does not tell."""

    @property
    def tasks(self) -> list[str]:
        """The tasks that were measured."""
        return [task for task in next(iter(self.accuracy.values()), {}) if task not in SUMMARIES]

    @property
    def remarks(self) -> list[str]:
        """What a reader of the accuracy table must know about its tasks."""
        remarks = [self.overlap.remark] if self.overlap.remark else []
        purposes = {"training": "to train on", "evaluation": "to measure on"}
        for part, purpose in purposes.items():
            if part in self.truncation and (remark := self.truncation[part].description(purpose)):
                remarks.append(remark)
        if self.derived_tasks:
            remarks.append("* Scores computed from capability grades, not given by people; mean_human leaves them out.")
        if self.gold_tasks:
            remarks.append(
                "The testbed's prompts are compared with its gold reward; the labels that training saw are simulated."
            )
        return remarks


def write_results(path: str | Path, results: Results) -> None:
    """Write results.json, completely or not at all. Raises `CheckpointError` if it cannot be written."""
    write_file(Path(path), results.to_json())


def read_results(path: str | Path) -> Results:
    """Reads the results.json of a run. Raises `DataError` if it is not one; see `read_part`."""
    return read_part(path, Results, "give the results.json that `dmoerm train` or `dmoerm eval --json` wrote")


def read_part(path: str | Path, model: type[P], hint: str) -> P:
    """Reads a JSON file of this model; `hint` says what file to give instead of a wrong one.

    Raises:
        DataError: the file does not exist, is not JSON, has another schema, or does not match the model.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", file=path, hint=hint) from None
    try:
        return model.model_validate(upgrade(json.loads(text)))
    except json.JSONDecodeError as error:
        raise DataError(f"is not valid JSON: {error}", file=path, hint=hint) from None
    except ValidationError as error:
        detail = error.errors()[0]
    field = ".".join(str(part) for part in detail["loc"])
    if field == "schema":
        hint = "this version reads schemas 1 and 2; install the version of dmoerm that wrote the file"
    value = None if detail["type"] == "missing" else detail["input"]
    raise DataError(detail["msg"], file=path, field=field or None, value=value, hint=hint)


def upgrade(document: Any) -> Any:
    """Translate a results document of schema 1 into schema 2; others are returned as they are.

    Schema 1 called accuracy `consistency`, and did not say whether the model was trained on the measured prompts: it
    was not in `train`, which measures its own held-out prompts; of other commands it is unknown.
    """
    if not isinstance(document, dict) or document.get("schema") != 1:
        return document
    upgraded = _renamed(document)
    if isinstance(conditions := document.get("conditions"), dict):
        upgraded["conditions"] = {name: _renamed(condition) for name, condition in conditions.items()}
    if "router" in document and "kind" not in document:
        known = document.get("command") in ("train", "demo")
        upgraded["overlap"] = {"known": known, "groups": 0, "prompts": 0, "included": not known}
    return upgraded | {"schema": 2}


def _renamed(fields: Any) -> Any:
    if not isinstance(fields, dict):
        return fields
    return {"accuracy" if name == "consistency" else name: value for name, value in fields.items()}


def versions() -> dict[str, str]:
    """The versions of what the numbers depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def phase_seconds(steps: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Phase → seconds, summed over its steps: `phase2/chitchat` counts for `phase2`."""
    seconds_by_phase: dict[str, float] = {}
    for name, metrics in steps.items():
        phase = name.partition("/")[0]
        seconds_by_phase[phase] = seconds_by_phase.get(phase, 0.0) + float(metrics.get("seconds", 0.0))
    return seconds_by_phase


def peak_memory() -> int | None:
    """Bytes of memory that this process took at most, or None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
