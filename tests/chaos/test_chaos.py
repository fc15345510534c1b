"""A small part of `make chaos`: each kind of fault that is over in seconds, and one kill."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.campaign import campaign
from chaos.damage import DAMAGES, HOSTILE, Read, damaged, hostile
from chaos.trials import killed, two_at_once, unbroken
from chaos.works import Labelling, Saving, Unbroken
from chaos.world import Nursery, World, checkpoint_hash, run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("chaos"))


@pytest.fixture(scope="module")
def read(world: World) -> Iterator[Read]:
    """In a process that the tests share."""
    with Nursery() as nursery:
        yield lambda model: nursery.run(world.score(model))


def test_a_kill_while_saving_loses_no_model(world: World, tmp_path: Path) -> None:
    work = Saving(world)
    expected = unbroken(work, world.place("unbroken"))
    assert killed(work, expected, tmp_path, random.Random(1)) == ""


@pytest.mark.slow
def test_a_command_that_ends_before_the_kill_is_killed_sooner(world: World, tmp_path: Path) -> None:
    work = Labelling(world)
    expected = unbroken(work, world.place("unbroken label"))
    assert killed(work, Unbroken(expected.result, 60), tmp_path, random.Random(1)) == ""
    (place,) = work.killed
    assert place.name == "sooner"


def test_the_same_seed_makes_the_same_bytes_in_any_process(world: World, tmp_path: Path) -> None:
    """And a second training on a folder where one is at work is locked out."""
    hashes = set()
    for seed in ("1", "2"):
        place = world.place(f"seed {seed}")
        ended = run(world.train(place), {"PYTHONHASHSEED": seed})
        assert ended.well, ended.said
        hashes.add(checkpoint_hash(place / "run" / "model"))
    (only,) = hashes
    assert two_at_once(world, Unbroken(only, 0), tmp_path) == ""


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_found(read: Read, trained_run: Any, tmp_path: Path, how: str) -> None:
    model = trained_run.folder / "model"
    assert damaged(read, model, "trunk.safetensors", DAMAGES[how], tmp_path, random.Random(3)) == ""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_is_refused_or_harmless(read: Read, trained_run: Any, tmp_path: Path, name: str) -> None:
    assert hostile(read, trained_run.folder / "model", name, tmp_path) == ""


def test_a_command_that_takes_too_long_is_killed_and_the_next_one_runs(world: World, tmp_path: Path) -> None:
    with Nursery(seconds=3) as nursery:
        assert nursery.run(world.train(tmp_path, "phase0.epochs=100000")).code == -signal.SIGKILL
        assert nursery.run(["data", "check", str(world.groups)]).well


def test_a_trial_that_loses_something_is_counted(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trials(*_: Any) -> list[tuple[str, Callable[[Path], str]]]:
        return [("x", lambda _: ""), ("x", lambda _: "lost"), ("x", lambda p: str(1 / len(p.name[:0])))]

    monkeypatch.setattr("chaos.campaign._trials", trials)
    monkeypatch.setattr("chaos.campaign.World", lambda _: world)
    (fault,) = campaign(tmp_path, 0, lambda _: None)
    assert (fault.tried, len(fault.lost)) == (3, 2)
    assert "ZeroDivisionError" in fault.lost[1]
