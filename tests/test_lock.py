"""pyproject.toml names every imported package, and requirements.lock pins each with the hashes of its files."""

from __future__ import annotations

import ast
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def test_every_dependency_is_pinned_with_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.findall(r"^([\w.-]+)==([\w.]+)(.*?)(?=^\S|\Z)", lock, re.M | re.S)
    pinned = {canonicalize_name(name): version for name, version, _ in entries}
    assert all("--hash=sha256:" in rest for _, _, rest in entries)
    for requirement in map(Requirement, requirements):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_every_imported_package_is_a_dependency() -> None:
    """A package that comes only with another one may go away with that one's next version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    declared = {canonicalize_name(Requirement(r).name) for r in [*project["dependencies"], *itertools.chain(*extras)]}
    distributions = packages_distributions()
    imported = {module.partition(".")[0] for file in (ROOT / "src").rglob("*.py") for module in imports(file)}
    external = imported - sys.stdlib_module_names - {"dmoerm"}
    assert {"torch", "yaml", "filelock"} <= external
    undeclared = {
        name for name in external if not declared & {canonicalize_name(d) for d in distributions.get(name, [name])}
    }
    assert undeclared == set()


def imports(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports by their full names."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
