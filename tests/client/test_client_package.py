"""dmoerm-client: the client's modules under a name of their own, where neither torch nor transformers is installed."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from dmoerm import __version__

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "clients" / "python"
SCRIPT = """
import asyncio, importlib.metadata, importlib.util, sys
import dmoerm_client
from dmoerm_client.integrations.trl import reward_function
from dmoerm_client.integrations.verl import compute_score

url = sys.argv[1]
with dmoerm_client.Client(url) as client:
    first, second = client.score("Hi.", ["tt", ""])
    assert (first.reward, second.reward) == (2.0, -20.0)
    assert first.win_probability(second) == 1.0

async def score():
    async with dmoerm_client.AsyncClient(url) as client:
        return await client.score("Hi.", ["t"])

assert asyncio.run(score())[0].reward == 1.0
assert reward_function(url)(prompts=["Hi."], completions=["ttt"]) == [3.0]
assert compute_score("", "tt", None, {"prompt": "Hi."}, url)["score"] == 2.0
try:
    reward_function("runs/mine")(prompts=["Hi."], completions=["ttt"])
except dmoerm_client.ConfigError as error:
    assert "pip install dmoerm, or give the URL" in str(error), error
else:
    raise AssertionError("a folder was loaded")
assert not {"torch", "transformers", "dmoerm", "numpy"} & {m.partition(".")[0] for m in sys.modules}
assert not any(map(importlib.util.find_spec, ("torch", "transformers", "dmoerm")))
print(importlib.metadata.version("dmoerm-client"))
"""


def settings(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_package_has_every_module_that_its_modules_import():
    """But for those that load a model, which are imported late."""
    included = settings(PACKAGE)["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    targets = {target: (PACKAGE / source).resolve() for source, target in included.items()}
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


@pytest.mark.slow
def test_it_works_without_torch(reward_server, tmp_path):
    """The wheel in a fresh environment, with the packages that it names from the index and no others."""
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, PACKAGE], check=True)
    (wheel,) = tmp_path.glob("dmoerm_client-*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True)
    command = [python, "-I", "-c", SCRIPT, reward_server.url]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (result.returncode, result.stdout.strip()) == (0, __version__), result.stderr
