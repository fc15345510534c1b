"""docs/architecture.md names functions that exist, and its layout is that of the source and of the import contract."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "dmoerm"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FUNCTIONS = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE)))


def layers() -> list[set[str]]:
    """Return the names in the first column of the layout, row by row."""
    table = PAGE.split("| layer | contents |")[1].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    return [set(re.findall(r"`([\w/.]+)`", cell)) for cell in rows]


def definitions(tree: ast.AST, prefix: str = "") -> set[str]:
    """Return the qualified names of all functions and classes, without nested functions."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(prefix + node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {prefix + node.name} | definitions(node, f"{prefix}{node.name}.")
    return names


@pytest.mark.parametrize(("path", "name"), FUNCTIONS)
def test_a_named_function_exists(path: str, name: str) -> None:
    assert name in definitions(ast.parse((SOURCE / path).read_text(encoding="utf-8")))


def test_both_paths_are_shown() -> None:
    files = {path for path, _ in FUNCTIONS}
    assert {"data/readers.py", "training/losses.py", "serving/guard.py", "model/dmoerm.py"} <= files


def test_the_layout_has_all_packages() -> None:
    packages = {f"{path.parent.name}/" for path in SOURCE.glob("*/__init__.py")}
    folders = {f"{path.name}/" for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    modules = {path.name for path in SOURCE.glob("*.py") if not path.name.startswith("_")}
    assert set().union(*layers()) == packages | modules
    assert all(f"`{folder}`" in PAGE for folder in folders)


def test_the_layout_is_the_import_contract() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = [c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]
    expected = [{name.strip().removeprefix("dmoerm.") for name in row.split("|")} for row in contract["layers"]]
    assert [{re.sub(r"/$|\.py$", "", name) for name in row} for row in layers()] == expected
