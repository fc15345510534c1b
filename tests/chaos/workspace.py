"""The files that all trials share (a tiny backbone, data, settings), and how commands are run."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from tiny import make_tiny_config, tiny_groups, write_backbone, write_groups

from dmoerm.config import dump_config
from dmoerm.taxonomy import draft_taxonomy

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TERM": "dumb", "COLUMNS": "400", "HF_HUB_OFFLINE": "1"}
_ENVIRONMENT |= {"OPENAI_API_KEY": "none"}
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
        with mock.patch.dict(os.environ, _ENVIRONMENT):  # which forked commands inherit
            forkserver.ensure_running()

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


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(  # a command that loads a checkpoint does not pay for imports
    ["dmoerm.cli", "dmoerm.model", "dmoerm.evaluation.scoring_files", "transformers.models.llama.modeling_llama"]
)


def run_forked(arguments: list[str], seconds: float = 60, memory: int = 3 << 30) -> CommandResult:
    """Run `dmoerm` in a fork of a process that has imported its packages.

    A command that exceeds the time limit is killed (exit code -9); `memory` is its limit in bytes.
    """
    with tempfile.NamedTemporaryFile() as screen:
        process = _FORKS.Process(target=_command, args=(arguments, screen.name, memory))
        process.start()
        process.join(seconds)
        if process.is_alive():
            os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
        return CommandResult(process.exitcode or 0, Path(screen.name).read_text(errors="replace"))


def _command(arguments: list[str], screen: str, memory: int) -> None:
    from dmoerm.cli import main

    os.setsid()
    output = os.open(screen, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    sys.argv[1:] = arguments
    main()


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


def wait_for_file(file: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file matches `file` (its name may be a pattern) or the command has ended."""
    while process.poll() is None and not any(file.parent.glob(file.name)):
        time.sleep(0.005)


def checkpoint_hash(model: Path) -> str:
    """Return a hash of the checkpoint's checksums."""
    return hashlib.sha256((model / "SHA256SUMS").read_bytes()).hexdigest()[:16]
