"""Where the campaign happens: a tiny backbone, data, settings, and what unbroken commands make of them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tiny import make_tiny_config, tiny_groups, write_backbone, write_groups

from dmoerm.config import dump_config
from dmoerm.taxonomy import draft_taxonomy

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TERM": "dumb",
    "COLUMNS": "400",
    "HF_HUB_OFFLINE": "1",
    "OPENAI_API_KEY": "none",
}
LIMIT = 300.0  # seconds that a command may take: beyond, it hangs
_STEP = {"epochs": 3, "batch_groups": 4, "evaluations": 3, "learning_rate": 1e-2}
_SETTINGS = {
    "phase0": _STEP,
    "phase1": _STEP,
    "phase2": {**_STEP, "lora": {"rank": 2, "dropout": 0.2}},
    "phase3": {**_STEP, "dropout": 0.2},
    "head": {"dropout": 0.1},
}


@dataclass(frozen=True)
class Ended:
    """How a command ended, and all that it wrote to the screen."""

    code: int
    said: str

    @property
    def well(self) -> bool:
        return self.code == 0

    @property
    def clearly(self) -> bool:
        """With exit code 1 and one line that says why."""
        lines = [line for line in self.said.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        return self.code == 1 and len(errors) == 1 and lines[-1] == errors[0] and "Traceback" not in self.said


class World:
    """What all trials read; each writes into a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        backbone = write_backbone(root / "backbone")
        config = make_tiny_config(backbone, root, **_SETTINGS)
        self.config, self.groups = root / "config.yaml", Path(config.data.files[0])
        self.config.write_text(dump_config(config))
        self.taxonomy = root / "taxonomy.yaml"
        self.taxonomy.write_text(draft_taxonomy(tiny_groups(), "tiny").to_yaml())
        self.queries = root / "queries.jsonl"
        write_groups(tiny_groups(60), self.queries)
        self.query = root / "query.jsonl"
        write_groups(tiny_groups()[:1], self.query)

    def place(self, name: str) -> Path:
        """A trial's own folder."""
        folder = self.root / name.replace(" ", "-")
        folder.mkdir(parents=True)
        return folder

    def train(self, place: Path, *settings: str) -> list[str]:
        """The command that trains in `place/run`."""
        own = (f"output={place / 'run'}", f"cache={place / 'cache'}", *settings)
        return ["train", str(self.config), *(part for setting in own for part in ("--set", setting))]

    def score(self, model: Path) -> list[str]:
        """The command that reads a model and scores one row."""
        return ["score", str(model), "--input", str(self.query)]


class Nursery:
    """Runs commands that read a model, one at a time, each in a fork of a process that has imported what that takes.

    Args:
        seconds, memory: what a command may take; bytes.
    """

    def __init__(self, seconds: float = 60, memory: int = 3 << 30) -> None:
        self._one = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py")), str(seconds), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_ENVIRONMENT},
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process as process:
            process.kill()

    def run(self, arguments: list[str]) -> Ended:
        """How `dmoerm` ended with these arguments; with -9 where it took too long."""
        asked, told = self._process.stdin, self._process.stdout
        assert asked is not None
        assert told is not None
        with self._one:
            print(json.dumps(arguments), file=asked, flush=True)
            return Ended(*json.loads(told.readline()))


def start(arguments: list[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Starts `dmoerm`, or with a first argument that ends in .py a script, with its output in one stream."""
    script = arguments[0].endswith(".py")
    command = [sys.executable] if script else [str(Path(sys.executable).with_name("dmoerm"))]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **_ENVIRONMENT, **(environment or {})},
        start_new_session=True,
    )


def wait(process: subprocess.Popen[bytes]) -> Ended:
    """Its end; one that hangs is killed, and has ended with -9."""
    try:
        said, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        said = kill(process)
    return Ended(process.returncode, said.decode(errors="replace"))


def run(arguments: list[str], environment: Mapping[str, str] | None = None) -> Ended:
    """Starts a command and waits for its end."""
    return wait(start(arguments, environment))


def kill(process: subprocess.Popen[bytes]) -> bytes:
    """Kill −9 of the command and all that it has started; what it had said."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]


def seconds_to(file: Path, process: subprocess.Popen[bytes]) -> float:
    """Waits until something matches `file` (its name may be a pattern), or the command has ended."""
    began = time.monotonic()
    while process.poll() is None and not any(file.parent.glob(file.name)):
        time.sleep(0.005)
    return time.monotonic() - began


def checkpoint_hash(model: Path) -> str:
    """A model's name by its bytes: the hash over its checksums."""
    return hashlib.sha256((model / "SHA256SUMS").read_bytes()).hexdigest()[:16]


def left_overs(folder: Path) -> list[Path]:
    """What writers that were killed have left there."""
    return list(folder.rglob(".*.unfinished*"))
