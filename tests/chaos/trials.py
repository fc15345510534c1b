"""What can be tried: each trial breaks one thing and says in a line what was lost; an empty line: nothing was."""

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

from chaos.works import Unbroken, Work
from chaos.world import Ended, World, checkpoint_hash, kill, run, seconds_to, start, wait

CLOCK = Path(__file__).with_name("clock")
_YEARS = 10 * 365 * 86_400


def unbroken(work: Work, place: Path) -> Unbroken:
    """The work without a fault: all others must end with the same."""
    with work.prepared(place) as command:
        process = start(command)
        seconds_to(place / work.begins, process)
        began = time.monotonic()
        ended = wait(process)
    assert ended.well, ended.said
    return Unbroken(work.result(place), time.monotonic() - began)


def killed(work: Work, expected: Unbroken, place: Path, chance: random.Random, clock: bool = False) -> str:
    """Kill −9 at a random moment of its writing, then the same command again.

    Args:
        clock: the clock runs ten years ahead before the kill and ten years back after it; files' times are shuffled.
    """
    moment = chance.uniform(0, expected.seconds)
    while not _killed_at(moment, work, place, clock):  # it was quicker than the unbroken one
        moment, place = moment / 2, place / "sooner"
        place.mkdir()
    work.killed.add(place)
    if wrong := work.broken(place):
        return f"after {moment:.2f} s: {wrong}"
    if clock:
        _shuffle_times(place, chance)
    with work.prepared(place) as command:
        again = run(command, clock_of(-_YEARS) if clock else None)
    return _compared(work, expected, place, again)


def _killed_at(moment: float, work: Work, place: Path, clock: bool) -> bool:
    """Whether the command still ran so many seconds after its first file."""
    with work.prepared(place) as command:
        process = start(command, clock_of(_YEARS) if clock else None)
        seconds_to(place / work.begins, process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        said = kill(process) if process.poll() is None else process.communicate()[0]
    assert process.returncode in (0, -signal.SIGKILL), said
    return process.returncode != 0


def _compared(work: Work, expected: Unbroken, place: Path, ended: Ended) -> str:
    if not ended.well:
        return f"the second run ended with {ended.code}: {ended.said[-300:]}"
    if work.result(place) != expected.result:
        return "the second run made something else"
    return work.rest(place)


def clock_of(offset: float) -> dict[str, str]:
    """An environment in which a command's clock is off by so many seconds, and jumps to and fro by a day."""
    paths = [str(CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"CHAOS_CLOCK": str(offset), "PYTHONPATH": os.pathsep.join(paths)}


def _shuffle_times(place: Path, chance: random.Random) -> None:
    for file in place.rglob("*"):
        seconds = time.time() + chance.uniform(-_YEARS, _YEARS)
        os.utime(file, (seconds, seconds))


def two_at_once(world: World, expected: Unbroken, place: Path) -> str:
    """A second training on the same folder: locked out, and the first one ends as if it were alone."""
    first = start(world.train(place))
    seconds_to(place / "run" / "config.yaml", first)
    first.send_signal(signal.SIGSTOP)  # so that it has not ended before the second begins
    second = run(world.train(place))
    first.send_signal(signal.SIGCONT)
    ended = wait(first)
    if not second.clearly or f"process {first.pid} on " not in second.said:
        return f"the second ended with {second.code}: {second.said[-300:]}"
    if not ended.well:
        return f"the first ended with {ended.code}: {ended.said[-300:]}"
    return "" if checkpoint_hash(place / "run" / "model") == expected.result else "the first made something else"


def no_number(world: World, step: str, place: Path) -> str:
    """A learning rate that makes this step's loss infinite: one line, and neither the step nor the model is there."""
    ended = run(world.train(place, f"{step}.learning_rate=1e30", f"{step}.head_learning_rate=1e30"))
    if not ended.clearly or "the loss is not finite" not in ended.said:
        return f"ended with {ended.code}: {ended.said[-300:]}"
    done = any(file.relative_to(place / "run" / "steps").parts[0] == step for file in place.rglob("state.safetensors"))
    return "it was saved as finished" if done or (place / "run" / "model").exists() else ""


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """A file system in memory at `place`. Raises `PermissionError` where none may be mounted."""
    if _mount("-t", "tmpfs", "-o", f"size={size}", "none", str(place)):
        raise PermissionError("no file system may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def full_disk(work: Work, expected: Unbroken, place: Path, kilobytes: int) -> str:
    """Room for so much more than lies there, then for all: a clear error, then the right result."""
    with small_disk(place, "256m"):
        with work.prepared(place):
            pass  # what must lie there before
        used = shutil.disk_usage(place).used // 1024
        _mount("-o", f"remount,size={used + kilobytes}k", str(place))
        with work.prepared(place) as command:
            first = run(command)
        if not first.clearly:
            return f"with {kilobytes} kB it ended with {first.code}: {first.said[-400:]}"
        if wrong := work.broken(place):
            return f"with {kilobytes} kB: {wrong}"
        _mount("-o", "remount,size=256m", str(place))
        with work.prepared(place) as command:
            again = run(command)
        return _compared(work, expected, place, again)


def read_only(work: Work, place: Path) -> str:
    """A disk that cannot be written: a clear error, and what was there is there."""
    with small_disk(place, "256m"):
        with work.prepared(place):
            pass  # what must lie there before
        _mount("-o", "remount,ro", str(place))
        try:
            with work.prepared(place) as command:
                ended = run(command)
        finally:
            _mount("-o", "remount,rw", str(place))
        return work.broken(place) if ended.clearly else f"it ended with {ended.code}: {ended.said[-400:]}"


def _mount(*options: str) -> int:
    return subprocess.run(["mount", *options], capture_output=True, check=False).returncode
