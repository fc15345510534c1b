"""The commands that trials interrupt: how each runs, its first file, and the result that it must leave."""

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

from chaos.workspace import Workspace, checkpoint_hash
from dmoerm.errors import DmoermError
from dmoerm.labels import read_labels
from dmoerm.model.integrity import check_sums

CONCURRENCY, TIMES = 4, 40
_SAVING = str(Path(__file__).with_name("saving.py"))


class Workload:
    """`dmoerm train` into an empty folder."""

    name = "train"
    first_file = "run/config.yaml"  # the first file that it writes

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.killed: set[Path] = set()

    @contextlib.contextmanager
    def prepared(self, folder: Path) -> Iterator[list[str]]:
        """Yield the command for this folder and provide what it needs while it runs."""
        yield self.workspace.train(folder)

    def damage(self, folder: Path) -> str:
        """Return what is wrong with the files of a killed command; empty: nothing."""
        return _damage(folder / "run" / "model")

    def result(self, folder: Path) -> str:
        """Return a digest of what the command has produced."""
        assert (folder / "run" / "report.html").is_file()
        return checkpoint_hash(folder / "run" / "model") if not _damage(folder / "run" / "model") else "damaged"

    def leftovers(self, folder: Path) -> str:
        """Return the names of leftover files; empty: none."""
        steps = list((folder / "run" / "checkpoints").rglob("checkpoint-*"))
        return " ".join(map(str, [*folder.rglob(".*.unfinished*"), *steps]))


class Scoring(Workload):
    """`dmoerm score` into a file that exists."""

    name, first_file = "score", ".scored.jsonl.*"

    def __init__(self, workspace: Workspace, model: Path) -> None:
        super().__init__(workspace)
        self.model = model

    @contextlib.contextmanager
    def prepared(self, folder: Path) -> Iterator[list[str]]:
        if not (folder / "scored.jsonl").exists():
            (folder / "scored.jsonl").write_text('{"id": "old"}\n')
        files = ["--input", str(self.workspace.queries), "--output", str(folder / "scored.jsonl")]
        yield ["score", str(self.model), *files]

    def damage(self, folder: Path) -> str:
        rows = [json.loads(line) for line in (folder / "scored.jsonl").read_text().splitlines()]
        count = len(self.workspace.queries.read_text().splitlines())
        return "" if len(rows) == count or rows == [{"id": "old"}] else f"{len(rows)} rows"

    def result(self, folder: Path) -> str:
        return hashlib.sha256((folder / "scored.jsonl").read_bytes()).hexdigest()


class Saving(Workload):
    """`save_pretrained` over an existing checkpoint, repeatedly."""

    name, first_file = "save", "started"

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self.models = [workspace.root / name for name in ("first", "second")]
        for model, seed in zip(self.models, (2, 5), strict=True):
            folder = workspace.subfolder(f"settings-{seed}")
            config = make_tiny_config(str(workspace.root / "backbone"), folder, phase3={"hidden": seed})
            make_model(config).save_pretrained(model)

    @contextlib.contextmanager
    def prepared(self, folder: Path) -> Iterator[list[str]]:
        if not (folder / "model").exists():
            shutil.copytree(self.models[0], folder / "model")
        yield [_SAVING, *map(str, self.models), str(folder / "model"), str(TIMES)]

    def damage(self, folder: Path) -> str:
        if not (folder / "model").is_dir():
            return "the checkpoint is missing"
        known = {checkpoint_hash(model) for model in self.models}
        return _damage(folder / "model") or ("" if checkpoint_hash(folder / "model") in known else "neither of the two")

    def result(self, folder: Path) -> str:
        return checkpoint_hash(folder / "model") + _damage(folder / "model")


class Labeling(Workload):
    """`dmoerm label` with a judge that counts the paid calls."""

    name, first_file = "label", "labels.sqlite"

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self.paid: dict[Path, Counter[str]] = {}

    @contextlib.contextmanager
    def prepared(self, folder: Path) -> Iterator[list[str]]:
        with FakeJudge(delay=0.02) as judge:
            options = ["--taxonomy", str(self.workspace.taxonomy), "--model", "judge", "--base-url", judge.url]
            options += ["--concurrency", str(CONCURRENCY), "--out", str(folder / "labels.parquet")]
            yield ["label", str(self.workspace.groups), *options]
        self.paid.setdefault(folder, Counter()).update(judge.paid)

    def damage(self, folder: Path) -> str:
        if (folder / "labels.parquet").exists():
            read_labels(folder / "labels.parquet")
        return ""

    def result(self, folder: Path) -> str:
        rows = [json.dumps(asdict(label)) for label in read_labels(folder / "labels.parquet")]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def leftovers(self, folder: Path) -> str:
        twice = self.paid[folder].total() - len(self.paid[folder])
        in_flight = CONCURRENCY * (folder in self.killed)
        return f"{twice} calls paid twice" if twice > in_flight else super().leftovers(folder)


@dataclass(frozen=True)
class Reference:
    """The result of an uninterrupted run, and its seconds from its first file on."""

    result: str
    seconds: float


def _damage(model: Path) -> str:
    try:
        if model.exists():
            check_sums(model)
    except DmoermError as error:
        return str(error)
    return ""
