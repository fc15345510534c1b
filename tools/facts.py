"""Print facts on the size and shape of `src`: `python tools/facts.py` (`--json` for machines)."""

from __future__ import annotations

import ast
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "dmoerm"
LONG_FUNCTION, SMALL_MODULE, LARGE_MODULE = 40, 40, 300


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods of a module, nested ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the signature to the end, without decorators and docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return lines - ((first.end_lineno or first.lineno) - first.lineno + 1 if docstring else 0)


def modules() -> dict[str, ast.Module]:
    """Path below `src/dmoerm` → syntax tree."""
    return {
        str(file.relative_to(SOURCE)): ast.parse(file.read_text(encoding="utf-8"))
        for file in sorted(SOURCE.rglob("*.py"))
    }


def class_names() -> dict[str, list[str]]:
    """Class name without leading underscores → the modules that define a class of that name."""
    places = defaultdict(list)
    for path, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(path)
    return dict(places)


def module_names() -> dict[str, list[str]]:
    """File name → the modules of that name, packages' `__init__` and entry points left out."""
    paths = defaultdict(list)
    for path in modules():
        if not (name := Path(path).name).startswith("__"):
            paths[name].append(path)
    return dict(paths)


def facts() -> dict[str, Any]:
    """Files, lines, lengths, and names with more than one meaning."""
    trees = modules()
    lines = {path: len((SOURCE / path).read_text(encoding="utf-8").splitlines()) for path in trees}
    lengths = {
        f"{path}:{function.lineno} {function.name}": length(function)
        for path, tree in trees.items()
        for function in functions(tree)
    }
    return {
        "files": len(trees),
        "lines": sum(lines.values()),
        "functions": len(lengths),
        "median function": statistics.median(lengths.values()),
        f"functions over {LONG_FUNCTION} lines": {k: n for k, n in lengths.items() if n > LONG_FUNCTION},
        f"modules over {LARGE_MODULE} lines": {k: n for k, n in lines.items() if n > LARGE_MODULE},
        f"modules under {SMALL_MODULE} lines": {
            k: n for k, n in lines.items() if n < SMALL_MODULE and not Path(k).name.startswith("__")
        },
        "class names with several meanings": {k: v for k, v in class_names().items() if len(v) > 1},
        "module names used several times": {k: v for k, v in module_names().items() if len(v) > 1},
    }


def main() -> None:
    """Print the facts."""
    result = facts()
    if "--json" in sys.argv[1:]:
        print(json.dumps(result, indent=1))
        return
    for name, value in result.items():
        print(f"{name}: {len(value) if isinstance(value, dict) else value}")
        if isinstance(value, dict):
            for key, detail in value.items():
                print(f"    {key}: {', '.join(detail) if isinstance(detail, list) else detail}")


if __name__ == "__main__":
    main()
