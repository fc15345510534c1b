"""The work that is broken off: a command, where it begins to write, and what it must have left in the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fake_judge import FakeJudge
from tiny import make_model, make_tiny_config

from chaos.world import World, checkpoint_hash, left_overs
from dmoerm.errors import DmoermError
from dmoerm.labels import read_labels
from dmoerm.model.integrity import check_sums

CONCURRENCY, TIMES = 4, 40
_SAVING = str(Path(__file__).with_name("saving.py"))


class Work:
    """`dmoerm train`, from nothing."""

    name = "train"
    begins = "run/config.yaml"  # the first file that it writes

    def __init__(self, world: World) -> None:
        self.world = world
        self.killed: set[Path] = set()

    @contextlib.contextmanager
    def prepared(self, place: Path) -> Iterator[list[str]]:
        """The command for this folder, with all that it needs while it runs."""
        yield self.world.train(place)

    def broken(self, place: Path) -> str:
        """What is wrong with what a killed command has left; empty: nothing."""
        return _damage(place / "run" / "model")

    def result(self, place: Path) -> str:
        """What the command has made, as one text."""
        assert (place / "run" / "report.html").is_file()
        return checkpoint_hash(place / "run" / "model") if not _damage(place / "run" / "model") else "damaged"

    def rest(self, place: Path) -> str:
        """What should not be left; empty: nothing."""
        steps = list((place / "run" / "checkpoints").rglob("checkpoint-*"))
        return " ".join(map(str, [*left_overs(place), *steps]))


class Scoring(Work):
    """`dmoerm score` into a file, over an older one."""

    name, begins = "score", ".scored.jsonl.*"

    def __init__(self, world: World, model: Path) -> None:
        super().__init__(world)
        self.model = model

    @contextlib.contextmanager
    def prepared(self, place: Path) -> Iterator[list[str]]:
        if not (place / "scored.jsonl").exists():
            (place / "scored.jsonl").write_text('{"id": "old"}\n')
        yield ["score", str(self.model), "--input", str(self.world.queries), "--output", str(place / "scored.jsonl")]

    def broken(self, place: Path) -> str:
        rows = [json.loads(line) for line in (place / "scored.jsonl").read_text().splitlines()]
        count = len(self.world.queries.read_text().splitlines())
        return "" if len(rows) == count or rows == [{"id": "old"}] else f"{len(rows)} rows"

    def result(self, place: Path) -> str:
        return hashlib.sha256((place / "scored.jsonl").read_bytes()).hexdigest()


class Saving(Work):
    """`save_pretrained` over an existing model, time and again."""

    name, begins = "save", "began"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.models = [world.root / name for name in ("first", "second")]
        for model, seed in zip(self.models, (2, 5), strict=True):
            place = world.place(f"settings-{seed}")
            config = make_tiny_config(str(world.root / "backbone"), place, head={"hidden": seed})
            make_model(config).save_pretrained(model)

    @contextlib.contextmanager
    def prepared(self, place: Path) -> Iterator[list[str]]:
        if not (place / "model").exists():
            shutil.copytree(self.models[0], place / "model")
        yield [_SAVING, *map(str, self.models), str(place / "model"), str(TIMES)]

    def broken(self, place: Path) -> str:
        if not (place / "model").is_dir():
            return "there is no model any more"
        known = {checkpoint_hash(model) for model in self.models}
        return _damage(place / "model") or ("" if checkpoint_hash(place / "model") in known else "neither of the two")

    def result(self, place: Path) -> str:
        return checkpoint_hash(place / "model") + _damage(place / "model")


class Labelling(Work):
    """`dmoerm label` with a judge that counts what is paid."""

    name, begins = "label", "labels.sqlite"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.paid: dict[Path, Counter[str]] = {}

    @contextlib.contextmanager
    def prepared(self, place: Path) -> Iterator[list[str]]:
        with FakeJudge(delay=0.02) as judge:
            options = ["--taxonomy", str(self.world.taxonomy), "--model", "judge", "--base-url", judge.url]
            options += ["--concurrency", str(CONCURRENCY), "--out", str(place / "labels.parquet")]
            yield ["label", str(self.world.groups), *options]
        self.paid.setdefault(place, Counter()).update(judge.paid)

    def broken(self, place: Path) -> str:
        if (place / "labels.parquet").exists():
            read_labels(place / "labels.parquet")
        return ""

    def result(self, place: Path) -> str:
        rows = [json.dumps(asdict(label)) for label in read_labels(place / "labels.parquet")]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def rest(self, place: Path) -> str:
        twice = self.paid[place].total() - len(self.paid[place])
        in_flight = CONCURRENCY * (place in self.killed)
        return f"{twice} calls paid twice" if twice > in_flight else super().rest(place)


@dataclass(frozen=True)
class Unbroken:
    """What a work makes when nothing comes between, and how long it takes from its first file on."""

    result: str
    seconds: float


def _damage(model: Path) -> str:
    try:
        if model.exists():
            check_sums(model)
    except DmoermError as error:
        return str(error)
    return ""
