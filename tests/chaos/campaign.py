"""All faults, each many times; what each came to, as a table."""

from __future__ import annotations

import random
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.damage import DAMAGES, HOSTILE, Read, damaged, hostile
from chaos.trials import full_disk, killed, no_number, read_only, two_at_once, unbroken
from chaos.works import Labelling, Saving, Scoring, Work
from chaos.world import Nursery, World
from dmoerm.model.integrity import SUMS

KILLS = {"train": 8, "label": 8, "score": 6, "save": 8}
ROOM = {"train": (20, 300, 700), "label": (12, 80), "score": (4, 24), "save": (64, 300)}  # kB, of what each needs
STEPS = ("router", "phase0", "phase1", "phase2", "phase3")


@dataclass
class Fault:
    """One kind of fault: what was tried, and what was lost."""

    name: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    skipped: str = ""

    def row(self) -> dict[str, Any]:
        """Of the table."""
        lost = len(self.lost)
        what = self.skipped or " ".join("; ".join(self.lost).split())[:200].replace("|", "/")
        return {"fault": self.name, "tried": self.tried, "survived": self.tried - lost, "lost": lost, "what": what}


Trial = tuple[str, Callable[[Path], str]]
"""The fault's name, and what tries it in a folder of its own."""


def campaign(
    root: Path, seed: int, say: Callable[[str], None], only: Sequence[str] = ("",), workers: int = 2
) -> list[Fault]:
    """Runs all trials whose fault's name begins with one of `only`.

    Args:
        say: is told of each trial that ends.
        workers: trials at once.
    """
    world, chance = World(root / "world"), random.Random(seed)
    with Nursery() as nursery, ThreadPoolExecutor(workers) as pool:
        trials = [trial for trial in _trials(world, nursery, chance, workers) if trial[0].startswith(tuple(only))]
        faults = {name: Fault(name) for name, _ in trials}
        for (name, _), lost in zip(trials, pool.map(lambda each: _tried(root, *each), enumerate(trials)), strict=True):
            _note(faults[name], lost)
            say(f"{name}: {lost or 'survived'}")
    return list(faults.values())


def _tried(root: Path, number: int, trial: Trial) -> str:
    place = root / f"trial-{number}"
    place.mkdir()
    try:
        return trial[1](place)
    except PermissionError as error:
        return f"skipped: {error}"
    except Exception:
        return traceback.format_exc(limit=3).replace("\n", " ")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _note(fault: Fault, lost: str) -> None:
    if lost.startswith("skipped: "):
        fault.skipped = lost
        return
    fault.tried += 1
    if lost:
        fault.lost.append(lost)


def _trials(world: World, nursery: Nursery, chance: random.Random, workers: int) -> Iterator[Trial]:
    train, label, saving = Work(world), Labelling(world), Saving(world)
    model = world.root / "train" / "run" / "model"
    score = Scoring(world, model)
    works: Sequence[Work] = (train, label, score, saving)
    train_place = world.place("train")
    expected = {train.name: unbroken(train, train_place)}
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda work: unbroken(work, world.place(f"unbroken {work.name}")), works[1:])
        expected |= dict(zip((work.name for work in works[1:]), found, strict=True))
    for work in works:
        for _ in range(KILLS[work.name]):
            yield f"kill −9: {work.name}", _killed(work, expected[work.name], chance.random())
    for work in (train, label):
        for _ in range(2):
            yield (
                f"clock jumps and kill −9: {work.name}",
                _killed(work, expected[work.name], chance.random(), clock=True),
            )
    for work in works:
        for kilobytes in ROOM[work.name]:
            yield f"full disk: {work.name}", lambda p, w=work, k=kilobytes: full_disk(w, expected[w.name], p, k)
        yield f"read-only disk: {work.name}", lambda p, w=work: read_only(w, p)
    for _ in range(2):
        yield "two training processes, one run folder", lambda p: two_at_once(world, expected["train"], p)
    for step in STEPS:
        yield "a loss that is not finite", lambda p, s=step: no_number(world, s, p)
    yield from _checkpoints(lambda folder: nursery.run(world.score(folder)), model, chance)


def _killed(work: Work, expected: object, seed: float, clock: bool = False) -> Callable[[Path], str]:
    return lambda place: killed(work, expected, place, random.Random(seed), clock)  # pyright: ignore[reportArgumentType]


def _checkpoints(read: Read, model: Path, chance: random.Random) -> Iterator[Trial]:
    files = sorted(str(file.relative_to(model)) for file in model.rglob("*") if file.is_file())
    assert SUMS in files
    for how, damage in DAMAGES.items():
        for name in files:
            seed = chance.random()
            yield (
                f"a checkpoint file is {how}",
                lambda p, n=name, d=damage, s=seed: damaged(read, model, n, d, p, random.Random(s)),
            )
    for name in HOSTILE:
        yield "a hostile checkpoint", lambda p, n=name: hostile(read, model, n, p)
