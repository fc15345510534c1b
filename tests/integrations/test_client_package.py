"""dmoerm-client: the client's modules under another name. `make package` runs them where torch is not installed."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

from dmoerm import __version__

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "clients" / "python"


def settings(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_package_has_every_module_that_its_modules_import():
    """But for those that load a model, which are imported late."""
    included = settings(PACKAGE)["tool"]["hatch"]["build"]["hooks"]["custom"]["modules"]
    targets = {f"dmoerm_client/{name}": ROOT / "src" / "dmoerm" / name for name in included}
    assert all(path.exists() for path in targets.values())
    files = {f"{t}/{file.name}": file for t, path in targets.items() if path.is_dir() for file in path.glob("*.py")}
    files |= {target: path for target, path in targets.items() if path.is_file()}
    files["dmoerm_client/__init__.py"] = PACKAGE / "dmoerm_client" / "__init__.py"
    external = set()
    for name, file in files.items():
        folder = Path(name).parent
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [folder, *folder.parents][node.level - 1] / (node.module or "").replace(".", "/")
                assert {f"{base}.py", f"{base}/__init__.py"} & files.keys(), f"{name}: {ast.unparse(node)}"
            elif isinstance(node, ast.Import | ast.ImportFrom):
                external |= {n.name for n in node.names} if isinstance(node, ast.Import) else {node.module}
    names = {str(name).partition(".")[0] for name in external} - sys.stdlib_module_names
    declared = settings(PACKAGE)["project"]["dependencies"]
    assert names == {dependency.partition(">=")[0] for dependency in declared}
    assert set(declared) <= set(settings(ROOT)["project"]["dependencies"])


def test_both_packages_have_the_same_version_and_license():
    versions = {settings(folder)["project"]["version"] for folder in (ROOT, PACKAGE)}
    assert versions == {__version__}
    assert (PACKAGE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
