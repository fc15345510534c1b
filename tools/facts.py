"""Print the size and shape of the project with their limits: `python tools/facts.py` (`--json` for machines)."""

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
GENERATED = ("settings.md", "tables.md", "backbones.md")  # pages of docs/ that a program writes, at least in part

LIMITS: dict[str, int] = {
    "product lines": 20_000,
    "product files": 170,
    "lines of the largest package": 3_500,
    "files under 40 lines": 10,
    "evidence lines": 7_000,
    "test lines": 20_000,
    "docs lines": 3_000,
    "function lines, median": 10,
    "function lines, 95 %": 35,
    "function lines, maximum": 80,
    "imports inside functions": 60,
    "modules reached from training/run.py": 60,
    "commands": 18,
    "options": 150,
    "settings": 100,
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> dict[str, ast.Module]:
    """Path below `src/dmoerm` → syntax tree."""
    files = sorted(SOURCE.rglob("*.py"))
    return {str(file.relative_to(SOURCE)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def class_names() -> dict[str, list[str]]:
    """Class name without leading underscores → the modules that define a class of that name."""
    paths = defaultdict(list)
    for path, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                paths[node.name.lstrip("_")].append(path)
    return dict(paths)


def lines_of(folder: Path, pattern: str = "*.py", exclude: tuple[str, ...] = ()) -> int:
    """Lines of the files below a folder."""
    files = (file for file in folder.rglob(pattern) if file.name not in exclude)
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def length(function: Function) -> int:
    """Lines from the signature to the end, without decorators and docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return lines - ((first.end_lineno or first.lineno) - first.lineno + 1 if docstring else 0)


def functions(tree: ast.AST) -> Iterator[Function]:
    """All functions and methods of a module, nested ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def inner_imports(tree: ast.AST) -> int:
    """Import statements inside functions."""
    nodes = (node for function in functions(tree) for node in ast.walk(function))
    imports = {id(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)}
    return len(imports)


def imported(tree: ast.Module, path: str, known: set[str]) -> set[str]:
    """Modules of the package that a module imports when it is imported, with the packages they are in."""
    package = ["dmoerm", *Path(path).parent.parts]
    names: set[str] = set()
    for node in _statements(tree.body):
        if isinstance(node, ast.ImportFrom):
            base = [] if not node.level else package[: len(package) - node.level + 1]
            base = [*base, *(node.module.split(".") if node.module else [])]
            names |= {".".join(base), *(".".join([*base, alias.name]) for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parents = {name.rsplit(".", count)[0] for name in names for count in range(1, name.count(".") + 1)}
    return (names | parents) & known


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run on import, without functions and type checking."""
    for node in body:
        if isinstance(node, Function) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            continue
        yield node
        for inner in ("body", "orelse", "handlers", "finalbody"):
            yield from _statements(getattr(node, inner, []) or [])


def reached(start: str) -> set[str]:
    """Modules of the package that the import of a module loads."""
    trees = modules()
    names = {_module_name(path): path for path in trees}
    todo, done = [start], set[str]()
    while todo:
        name = todo.pop()
        if name not in done:
            done.add(name)
            todo += imported(trees[names[name]], names[name], set(names))
    return done


def _module_name(path: str) -> str:
    return ".".join(["dmoerm", *Path(path).with_suffix("").parts]).removesuffix(".__init__")


def commands() -> dict[str, int]:
    """Command → its number of options."""
    from dmoerm.cli import COMMANDS, load_command

    def walk(command: Any, name: str) -> Iterator[tuple[str, int]]:
        for child, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, f"{name} {child}")
        if not hasattr(command, "commands"):
            yield name, sum(parameter.param_type_name == "option" for parameter in command.params)

    return dict(item for name in COMMANDS for item in walk(load_command(name), name))


def settings() -> int:
    """Number of settings of a config."""
    import settings_page

    return settings_page.settings_page().count("\n| `")


def facts() -> dict[str, Any]:
    """Every number of `LIMITS`, and details on the packages."""
    trees = modules()
    lines = {path: len((SOURCE / path).read_text(encoding="utf-8").splitlines()) for path in trees}
    packages: dict[str, int] = defaultdict(int)
    for path, count in lines.items():
        packages[Path(path).parts[0] if "/" in path else "."] += count
    lengths = {f"{p}:{f.lineno} {f.name}": length(f) for p, tree in trees.items() for f in functions(tree)}
    small = [path for path, n in lines.items() if n < 40 and not Path(path).name.startswith("__")]
    options = commands()
    return {
        "product lines": sum(lines.values()),
        "product files": len(trees),
        "lines of the largest package": max(packages.values()),
        "files under 40 lines": len(small),
        "evidence lines": lines_of(ROOT / "evidence"),
        "test lines": lines_of(ROOT / "tests"),
        "docs lines": lines_of(ROOT / "docs", "*.md", GENERATED),
        "function lines, median": statistics.median(lengths.values()),
        "function lines, 95 %": round(statistics.quantiles(lengths.values(), n=20)[-1]),
        "function lines, maximum": max(lengths.values()),
        "imports inside functions": sum(map(inner_imports, trees.values())),
        "modules reached from training/run.py": len(reached("dmoerm.training.run")),
        "commands": len(options),
        "options": sum(options.values()),
        "settings": settings(),
        "packages": dict(sorted(packages.items(), key=lambda item: -item[1])),
        "small files": small,
        "functions over 60 lines": {name: n for name, n in lengths.items() if n > 60},
        "class names with several meanings": {k: v for k, v in class_names().items() if len(v) > 1},
    }


def main() -> None:
    """Print the facts."""
    result = facts()
    if "--json" in sys.argv[1:]:
        print(json.dumps(result, indent=1))
        return
    for name, value in result.items():
        if name in LIMITS:
            print(f"{name:38} {value:>8,}   limit {LIMITS[name]:>6,}{'' if value <= LIMITS[name] else '   over'}")
        else:
            print(f"{name}: {json.dumps(value, indent=2)}")


if __name__ == "__main__":
    main()
