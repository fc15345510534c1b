"""Names of tasks and capabilities: which ones are valid, and the folder names derived from them."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from .errors import shorten

MAX_LENGTH = 100
"""Most characters of a name."""
ONE_TASK = "all_prompts"
"""The task of all prompts if the data names no task."""
RESERVED_TASKS = ("mean", "mean_human")
"""Names that results use beside those of the tasks."""
BASE_SCORES = ("per_task", "all_labels", "general", "other_tasks")
"""Names of what contributes to a reward besides the scores of capabilities; see `Score.contributions`."""
RESERVED_CAPABILITIES = ("overall", *BASE_SCORES)
"""The name of the overall preference, and those of scores that a task has besides the capabilities' ones."""

_PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]*")
_MAX_PLAIN, _MAX_SLUG, _DIGEST = 200, 40, 12
_FORBIDDEN = {"Cc": "a control character", "Cs": "a lone surrogate", "Zl": "a line break", "Zp": "a line break"}


def check_name(kind: str, name: str, max_length: int = MAX_LENGTH) -> str:
    """Return a valid name unchanged: a text of one line without white space around it, which is not reserved.

    Args:
        kind: what is named: `task` and `capability` have reserved names.

    Raises:
        ValueError: the name is invalid.
    """
    fault = ""
    if kind == "task" and name in RESERVED_TASKS:
        fault = "is reserved for the mean over tasks; choose another"
    elif kind == "capability" and name in RESERVED_CAPABILITIES:
        fault = "is reserved for a score of the whole response; choose another, or give overall grades as scores"
    elif not name.strip():
        fault = "is empty; give it a name"
    elif name != name.strip():
        fault = "begins or ends with white space; remove it"
    elif len(name) > max_length:
        fault = f"has {len(name)} characters; use at most {max_length}"
    elif categories := [c for c in map(unicodedata.category, name) if c in _FORBIDDEN]:
        fault = f"contains {_FORBIDDEN[categories[0]]}; remove it"
    if fault:
        raise ValueError(f"the {kind} name {shorten(name)} {fault}")
    return name


def qualified_name(*names: str) -> str:
    """Join names by `/`. Different names give different results: `%` and `/` in a name are escaped as in a URL."""
    return "/".join(name.replace("%", "%25").replace("/", "%2F") for name in names)


def folder_name(name: str) -> str:
    """Return the name for use in paths and module trees; different names have different ones.

    A name of `a-z 0-9 _ -` is its own folder name. Any other becomes a readable part and a digest, joined by `=`, which
    no plain name contains: `Code & Math` → `code_math=d8f5abfb4f97`. The result is safe on every file system, also on
    those that ignore case, in object stores, and as the name of a torch module.
    """
    if len(name) <= _MAX_PLAIN and _PLAIN.fullmatch(name):
        return name
    ascii_text = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "_", ascii_text.lower()).strip("_")[:_MAX_SLUG].strip("_") or "name"
    return f"{slug}={hashlib.sha256(name.encode()).hexdigest()[:_DIGEST]}"
