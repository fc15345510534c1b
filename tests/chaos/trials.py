"""Trials: each causes one fault and returns what was lost in one line, or an empty string if nothing was."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from chaos.workloads import Reference, Workload
from chaos.workspace import (
    CommandResult,
    Workspace,
    checkpoint_hash,
    kill,
    run,
    run_forked,
    start,
    wait,
    wait_for_file,
)

CLOCK = Path(__file__).with_name("clock")
_YEARS = 10 * 365 * 86_400


def reference(workload: Workload, folder: Path) -> Reference:
    """Run the command without a fault; all trials must end with the same result."""
    with workload.prepared(folder) as command:
        process = start(command)
        wait_for_file(folder / workload.first_file, process)
        started = time.monotonic()
        result = wait(process)
    assert result.succeeded, result.output
    return Reference(workload.result(folder), time.monotonic() - started)


def kill_and_rerun(
    workload: Workload, expected: Reference, folder: Path, rng: random.Random, clock: bool = False
) -> str:
    """Kill the command with SIGKILL at a random time after its first write, then run it again.

    Args:
        clock: set the clock ten years ahead before the kill and ten years back after it; shuffle the files' times.
    """
    moment = rng.uniform(0, expected.seconds)
    while not _killed_at(moment, workload, folder, clock):  # it finished earlier than the reference run
        moment, folder = moment / 2, folder / "sooner"
        folder.mkdir()
    workload.killed.add(folder)
    if wrong := workload.damage(folder):
        return f"after {moment:.2f} s: {wrong}"
    for file in folder.rglob("*") if clock else ():
        seconds = time.time() + rng.uniform(-_YEARS, _YEARS)
        os.utime(file, (seconds, seconds))
    with workload.prepared(folder) as command:
        again = run(command, clock_of(-_YEARS) if clock else None)
    return _compared(workload, expected, folder, again)


def _killed_at(moment: float, workload: Workload, folder: Path, clock: bool) -> bool:
    """Kill the command `moment` seconds after its first file; return whether it was still running."""
    with workload.prepared(folder) as command:
        process = start(command, clock_of(_YEARS) if clock else None)
        wait_for_file(folder / workload.first_file, process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        output = kill(process) if process.poll() is None else process.communicate()[0]
    assert process.returncode in (0, -signal.SIGKILL), output
    return process.returncode != 0


def _compared(workload: Workload, expected: Reference, folder: Path, result: CommandResult) -> str:
    if not result.succeeded:
        return f"the second run ended with {result.code}: {result.output[-300:]}"
    if workload.result(folder) != expected.result:
        return "the second run gave a different result"
    return workload.leftovers(folder)


def clock_of(offset: float) -> dict[str, str]:
    """Return an environment in which the clock is off by `offset` seconds and jumps by a day in both directions."""
    paths = [str(CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"CHAOS_CLOCK": str(offset), "PYTHONPATH": os.pathsep.join(paths)}


def concurrent_training(workspace: Workspace, expected: Reference, folder: Path) -> str:
    """Start a second training in the same folder: it must be locked out and must not change the result of the first."""
    first = start(workspace.train(folder))
    wait_for_file(folder / "run" / "config.yaml", first)
    first.send_signal(signal.SIGSTOP)  # so that it does not finish before the second starts
    second = run(workspace.train(folder))
    first.send_signal(signal.SIGCONT)
    result = wait(first)
    if not second.failed_cleanly or f"process {first.pid} on " not in second.output:
        return f"the second ended with {second.code}: {second.output[-300:]}"
    if not result.succeeded:
        return f"the first ended with {result.code}: {result.output[-300:]}"
    return "" if checkpoint_hash(folder / "run" / "model") == expected.result else "the first gave a different result"


def non_finite_loss(workspace: Workspace, step: str, folder: Path) -> str:
    """Train with an infinite loss in this step: one error line, and neither the step nor a model is saved."""
    result = run_forked(workspace.train(folder, f"{step}.learning_rate=1e30"))
    if not result.failed_cleanly or "the loss is not finite" not in result.output:
        return f"ended with {result.code}: {result.output[-300:]}"
    done = [*(folder / "run" / "steps" / step).rglob("state.safetensors"), *(folder / "run").glob("model")]
    return "it was saved as finished" if done else ""


@contextlib.contextmanager
def small_disk(workload: Workload, folder: Path) -> Iterator[None]:
    """Mount a file system in memory at `folder`, with what the command expects there.

    Raises `PermissionError` if mounting is not permitted.
    """
    if _mount("-t", "tmpfs", "-o", "size=256m", "none", str(folder)):
        raise PermissionError("mounting a file system is not permitted")
    try:
        with workload.prepared(folder):
            pass
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*options: str) -> int:
    return subprocess.run(["mount", *options], capture_output=True, check=False).returncode


def full_disk(workload: Workload, expected: Reference, folder: Path, kilobytes: int) -> str:
    """Run with `kilobytes` of free space, then with enough: a clear error first, then the right result."""
    with small_disk(workload, folder):
        used = shutil.disk_usage(folder).used // 1024
        _mount("-o", f"remount,size={used + kilobytes}k", str(folder))
        if wrong := _fails_cleanly(workload, folder):
            return f"with {kilobytes} kB: {wrong}"
        _mount("-o", "remount,size=256m", str(folder))
        with workload.prepared(folder) as command:
            again = run(command)
        return _compared(workload, expected, folder, again)


def read_only(workload: Workload, folder: Path) -> str:
    """Run on a read-only disk: a clear error, and existing files are unchanged."""
    with small_disk(workload, folder):
        _mount("-o", "remount,ro", str(folder))
        try:
            return _fails_cleanly(workload, folder)
        finally:
            _mount("-o", "remount,rw", str(folder))


def _fails_cleanly(workload: Workload, folder: Path) -> str:
    with workload.prepared(folder) as command:
        result = run(command)
    return workload.damage(folder) if result.failed_cleanly else f"it ended with {result.code}: {result.output[-400:]}"
