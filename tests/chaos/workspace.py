"""The files that all trials share (a tiny backbone, data, settings), and how commands are run."""

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
LIMIT = 300.0  # seconds after which a command counts as hanging
_STEP = {"epochs": 3, "evaluations": 3, "learning_rate": 1e-2}
_SETTINGS = {
    "training": {"batch_groups": 4},
    "phase0": _STEP,
    "phase1": _STEP,
    "phase2": {**_STEP, "lora": {"rank": 2, "dropout": 0.2}},
    "phase3": {**_STEP, "dropout": 0.2},
}


@dataclass(frozen=True)
class CommandResult:
    """A command's exit code and all of its output."""

    code: int
    output: str

    @property
    def succeeded(self) -> bool:
        return self.code == 0

    @property
    def failed_cleanly(self) -> bool:
        """Whether the exit code is 1 and the output ends with one error line, without a traceback."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        return self.code == 1 and len(errors) == 1 and lines[-1] == errors[0] and "Traceback" not in self.output


class Workspace:
    """The files that all trials read. Each trial writes into a separate folder."""

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

    def subfolder(self, name: str) -> Path:
        """Create a trial's folder."""
        folder = self.root / name.replace(" ", "-")
        folder.mkdir(parents=True)
        return folder

    def train(self, folder: Path, *settings: str) -> list[str]:
        """Return the command that trains in `folder/run`."""
        settings = (f"output={folder / 'run'}", f"cache={folder / 'cache'}", *settings)
        return ["train", str(self.config), *(part for setting in settings for part in ("--set", setting))]

    def score(self, model: Path) -> list[str]:
        """Return the command that loads a checkpoint and scores one row."""
        return ["score", str(model), "--input", str(self.query)]


class ForkServer:
    """Run commands that load a checkpoint, one at a time, each in a fork of a process that has imported the packages.

    Args:
        seconds: time limit of a command.
        memory: memory limit of a command in bytes.
    """

    def __init__(self, seconds: float = 60, memory: int = 3 << 30) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(seconds), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_ENVIRONMENT},
        )

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process as process:
            process.kill()

    def run(self, arguments: list[str]) -> CommandResult:
        """Run `dmoerm` with these arguments. A command that exceeds the time limit is killed (exit code -9)."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with self._lock:
            print(json.dumps(arguments), file=stdin, flush=True)
            return CommandResult(*json.loads(stdout.readline()))


def start(arguments: list[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start `dmoerm`, or a script if the first argument ends in .py, with all output in one stream."""
    script = arguments[0].endswith(".py")
    command = [sys.executable] if script else [str(Path(sys.executable).with_name("dmoerm"))]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **_ENVIRONMENT, **(environment or {})},
        start_new_session=True,
    )


def wait(process: subprocess.Popen[bytes]) -> CommandResult:
    """Wait for the command. A hanging command is killed (exit code -9)."""
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        output = kill(process)
    return CommandResult(process.returncode, output.decode(errors="replace"))


def run(arguments: list[str], environment: Mapping[str, str] | None = None) -> CommandResult:
    """Start a command and wait for it."""
    return wait(start(arguments, environment))


def kill(process: subprocess.Popen[bytes]) -> bytes:
    """Kill the command and its children with SIGKILL; return the output so far."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]


def wait_for_file(file: Path, process: subprocess.Popen[bytes]) -> float:
    """Wait until a file matches `file` (its name may be a pattern) or the command has ended; return the seconds."""
    started = time.monotonic()
    while process.poll() is None and not any(file.parent.glob(file.name)):
        time.sleep(0.005)
    return time.monotonic() - started


def checkpoint_hash(model: Path) -> str:
    """Return a hash of the checkpoint's bytes: that of its checksums."""
    return hashlib.sha256((model / "SHA256SUMS").read_bytes()).hexdigest()[:16]


def leftover_files(folder: Path) -> list[Path]:
    """Return the leftover partial files of killed writers."""
    return list(folder.rglob(".*.unfinished*"))
