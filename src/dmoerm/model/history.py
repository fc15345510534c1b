"""The history of a checkpoint: the changes to the trained model, in config.json and in the model card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_TITLE = "## Changes after training"
_SECTION = re.compile(rf"{_TITLE}\n.*?(?=^## |\Z)", re.S | re.M)
_NEXT = "## Use\n"
_DONE = {
    "add": "added",
    "retrain": "retrained",
    "remove": "removed",
    "export": "exported",
    "merge": "merged",
}


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class ModelChange(BaseModel):
    """One change of a trained model.

    Attributes:
        change: what was done.
        task: the task that was changed.
        capability: the capability that was changed; None: the whole task.
        time: in UTC, ISO 8601.
        data: SHA-256 of the groups that were trained on; None: the change needed no data.
        source: folder name of the other model of a merge.
        settings: settings that differ from those in run.yaml, by name.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)
    change: Literal["add", "retrain", "remove", "export", "merge"]
    task: str
    capability: str | None = None
    time: str = Field(default_factory=now)
    data: str | None = None
    source: str | None = None
    settings: dict[str, Any] = {}

    def sentence(self) -> str:
        """Describe the change in one line of Markdown."""
        name = self.task if self.capability is None else f"{self.task}/{self.capability}"
        parts = [f"{_code(name)} {_DONE[self.change]} at {_code(self.time)}"]
        parts += [f"from {_code(self.source)}"] if self.source else []
        parts += [f"data {_code(self.data[:16])}"] if self.data else []
        settings = "; ".join(f"{key}={value}" for key, value in self.settings.items())
        return ", ".join([*parts, *([f"settings {_code(settings)}"] if settings else [])])


def with_changes(card: str, history: Sequence[dict[str, Any]]) -> str:
    """Return a model card whose section of changes lists the history; the section is added if the card has none."""
    lines = "".join(f"* {ModelChange(**change).sentence()}\n" for change in history)
    remark = "Figures above this section are of the model before these changes.\n\n"
    section = f"{_TITLE}\n\n{remark}{lines}\n"
    if _TITLE in card:
        return _SECTION.sub(lambda _: section, card, count=1)
    return card.replace(_NEXT, section + _NEXT, 1) if _NEXT in card else f"{card.rstrip()}\n\n{section}".lstrip()


def _code(text: str) -> str:
    return "`" + " ".join(text.split()).replace("`", "'") + "`"
