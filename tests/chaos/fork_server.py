"""Fork a command for each line of input (its arguments), and print its exit code and output.

The packages that loading a checkpoint needs are imported before, so a command does not pay for imports, and commands
do not affect each other. `chaos.workspace.ForkServer` starts it as fork_server.py SECONDS MEMORY (limits of a command).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time

_IMPORTED = ("dmoerm.model", "dmoerm.evaluation.scoring_files", "transformers.models.llama.modeling_llama")


def next_command(seconds: float, memory: int) -> list[str] | None:
    """Return the arguments in the process of each command, and None in this process when the input ends."""
    for line in sys.stdin:
        with tempfile.TemporaryFile() as screen:
            process = os.fork()
            if not process:
                _redirect(screen.fileno(), memory)
                return json.loads(line)
            code = _code(process, seconds)
            screen.seek(0)
            print(json.dumps([code, screen.read().decode(errors="replace")]), flush=True)
    return None


def _redirect(screen: int, memory: int) -> None:
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(screen, 1)
    os.dup2(screen, 2)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def _code(process: int, seconds: float) -> int:
    """Return the exit code. A command that exceeds the time limit is killed with its children (-9)."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    from dmoerm.cli import main

    for name in _IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # otherwise the exit of each command collects all imported objects, which takes a second
    assert threading.active_count() == 1, "a fork copies one thread only"
    if (arguments := next_command(float(sys.argv[1]), int(sys.argv[2]))) is not None:
        sys.argv[1:] = arguments
        main()
