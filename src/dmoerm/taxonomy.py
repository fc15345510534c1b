"""The taxonomy: the tasks, the capabilities on which responses to each task are judged, and a rubric for each.

A taxonomy is a small YAML file. Two ship with the package: `paper-en` and `paper-zh`, the five tasks of the paper.
Task and capability names may be any text of one line; see `dmoerm.names`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .errors import DmoermError, TaxonomyError, first_fault, shorten
from .names import check_name
from .schema import CapabilityName, Group, TaskName

BUILT_IN = ("paper-en", "paper-zh")
"""Names of the taxonomies that are part of the package."""


class Capability(BaseModel):
    """One dimension on which a response to a task is judged.

    Attributes:
        title: the displayed name, in the language of the taxonomy.
        rubric: one sentence that describes a good response; judges see it unchanged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)
    title: str = Field(min_length=1)
    rubric: str = Field(min_length=1)


class Task(BaseModel):
    """A kind of prompt.

    Attributes:
        title: the displayed name, in the language of the taxonomy.
        description: one sentence that describes the prompts of this task.
        capabilities: capability name → capability; the order is the experts' order. Empty: the task has no experts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)
    title: str = Field(min_length=1)
    description: str = Field(min_length=1)
    capabilities: dict[CapabilityName, Capability] = {}


class Taxonomy(BaseModel):
    """All tasks of one reward model.

    Attributes:
        name: the taxonomy's own name.
        language: the language of titles and rubrics, as a code such as `en` or `zh`.
        tasks: task name → task, one or more; the order is the router's order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)
    name: Annotated[str, AfterValidator(partial(check_name, "taxonomy"))]
    language: str = Field(min_length=2)
    tasks: dict[TaskName, Task] = Field(min_length=1)

    def without(self, removed: Collection[tuple[str, str]]) -> Taxonomy:
        """Return the taxonomy without these capabilities, each as (task, capability)."""
        tasks = {}
        for name, task in self.tasks.items():
            kept = {c: each for c, each in task.capabilities.items() if (name, c) not in removed}
            tasks[name] = task.model_copy(update={"capabilities": kept})
        return self.model_copy(update={"tasks": tasks})

    def to_yaml(self) -> str:
        """Return the taxonomy as YAML text that `load_taxonomy` reads."""
        return yaml.safe_dump(self.model_dump(), allow_unicode=True, sort_keys=False, width=120)


def load_taxonomy(name_or_path: str | Path) -> Taxonomy:
    """Load a built-in taxonomy by its name, or a taxonomy from a YAML file.

    Raises:
        TaxonomyError: the file does not exist or is invalid; the message has the position, the value and a hint.
    """
    path = Path(name_or_path)
    if str(name_or_path) in BUILT_IN:
        path = Path(__file__).parent / "taxonomies" / f"{name_or_path}.yaml"
    try:
        content = read_yaml(path, TaxonomyError)
    except FileNotFoundError:
        hint = f"give a path to a YAML file or one of {', '.join(BUILT_IN)}"
        raise TaxonomyError(f"{path}: the taxonomy does not exist; {hint}") from None
    if not isinstance(content, dict):
        hint = "start from the file that `dmoerm init` writes, or a copy of paper-en"
        raise TaxonomyError(f"{path}: must hold name, language and tasks (got {shorten(content)}); {hint}")
    return _validate(content, str(path))


def draft_taxonomy(groups: Iterable[Group], name: str, general: Mapping[str, str] | None = None) -> Taxonomy:
    """Draft a taxonomy from the tasks and graded capabilities of labeled data; groups without a task are ignored.

    Args:
        general: capability → rubric of the tasks without capability grades; None: these tasks get no capabilities.

    Raises:
        TaxonomyError: no group has a task.
    """
    met: dict[str, set[str]] = {}
    for group in groups:
        if group.task is not None:
            met.setdefault(group.task, set()).update(group.capabilities, group.judge_labels)
    return draft_from_names(met, name, general)


def draft_from_names(met: Mapping[str, Iterable[str]], name: str, general: Mapping[str, str] | None = None) -> Taxonomy:
    """Draft a taxonomy from the names of tasks and of their capabilities; see `draft_taxonomy`."""
    if not met:
        hint = "fill the field `task` of the data, or name one for all (--task, data.task)"
        raise TaxonomyError(f"no group has a task, so there is nothing to draft; {hint}")

    def words(name: str) -> str:
        return re.sub(r"[_-]+", " ", name).strip() or name

    edit, tasks = "(Drafted from the name: edit this sentence.)", dict[str, Any]()
    for task in sorted(met):
        drafted = {each: f"The answer does well on {words(each)}. {edit}" for each in sorted(met[task])}
        tasks[task] = {
            "title": words(task).capitalize(),
            "description": f"Prompts of the kind {words(task)}. {edit}",
            "capabilities": {
                c: {"title": words(c).capitalize(), "rubric": text} for c, text in (drafted or general or {}).items()
            },
        }
    return _validate({"name": name, "language": "en", "tasks": tasks}, f"draft {name!r}")


class UniqueKeyLoader(yaml.SafeLoader):
    """Refuse duplicate keys: plain YAML keeps the last one, so that a whole task or section could be lost unnoticed."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping's node. Raise `MarkedYAMLError` with the line of a key that is given again."""
        node = super().compose_mapping_node(anchor)
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                    )
                keys.add((key.tag, key.value))
        return node


def read_yaml(path: Path, kind: type[DmoermError]) -> Any:
    """Return the content of a YAML file. Raise `FileNotFoundError`, or an error of this kind with the line."""
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader=UniqueKeyLoader)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise kind(f"{path}: cannot be read ({error.strerror or error}); give a path to a readable file") from None
    except UnicodeDecodeError as error:
        raise kind(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise kind(f"{path}{line}: is not valid YAML ({error.problem}); correct the file there") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise kind(f"{path}: is not valid YAML ({' '.join(str(error).split())}); correct the file") from None


def _validate(content: dict[Any, Any], where: str) -> Taxonomy:
    try:
        return Taxonomy.model_validate(content)
    except ValidationError as error:
        fault = first_fault(error)
    value = f" (got {shorten(fault.value)})" if fault.kind not in ("value_error", "missing") else ""
    raise TaxonomyError(f"{where}: {fault.field}: {fault.message}{value}{_HINTS.get(fault.kind, '')}")


_HINTS = {
    "missing": "; add the field",
    "too_short": "; name at least one",
    "string_too_short": "; write a text",
    "extra_forbidden": "; remove the field or correct its spelling",
    "string_type": "; write a text, in quotes if YAML reads it as another kind of value (no, on, 12)",
    "model_type": "; write it as fields below the name",
    "dict_type": "; write it as names with fields below each",
}
