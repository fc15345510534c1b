"""Examples in files: what encoding each group gives, tokenized once, and small in memory."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY_TASKS

from dmoerm.config import Config
from dmoerm.data.splits import load_splits
from dmoerm.schema import Group
from dmoerm.training import examples as module
from dmoerm.training.examples import label
from dmoerm.training.run import check_pairs, split_examples

from .made import Made

BYTES_PER_ROW = 400  # of Python objects for a group and its example; as objects in memory, they take 5,000 and more


def test_an_example_is_what_its_group_gives(begun: Callable[..., Any]) -> None:
    start = begun()
    encoder = start.run.model.encoder
    groups = load_splits(start.run.config).train
    examples = start.run.examples(groups)
    for group, example in zip(groups, examples, strict=True):
        encoded = encoder.encode(group)
        whole = Made(group, encoded, group.task, label(group))
        for name in ("group", "encoded", "task", "pairs", "key", "prompt", "margin"):
            assert getattr(example, name) == getattr(whole, name)
    moved = examples[0].with_task("other").with_pairs({})
    assert (moved.task, moved.pairs, moved.encoded) == ("other", {}, examples[0].encoded)
    assert examples[0].pairs


def test_data_are_tokenized_once(begun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    start = begun()
    run, table = start.run, load_splits(start.run.config).train
    writes: list[Path] = []
    write = module._write
    monkeypatch.setattr(module, "_write", lambda target, *more: (writes.append(target), write(target, *more)))
    assert len(run.examples(table)) == len(table)
    assert not writes
    (folder,) = (run.cache.root / "tokens").iterdir()
    for file in folder.iterdir():  # as the cache evicts it
        file.unlink()
    assert len(run.examples(table)) == len(table)
    assert writes == [folder]


def rows(count: int) -> list[Group]:
    """Groups of short texts."""
    chance = random.Random(count)
    words = ["time", "year", "people", "way", "day", "man", "thing"]
    texts = [" ".join(chance.choices(words, k=6)) for _ in range(3 * count)]
    return [
        Group(
            prompt=f"{i} {texts[i]}?",
            responses=(texts[count + i], f"{texts[2 * count + i]}!"),
            scores=(2, 1),
            task=[*TINY_TASKS][i % 2],
        )
        for i in range(count)
    ]


def held_bytes(begun: Callable[..., Any], write_rows: Callable[..., Path], count: int) -> int:
    """Return the bytes of Python objects that the groups and examples of so many rows hold."""
    file = write_rows([group.model_dump(exclude_none=True) for group in rows(count)], f"{count}.jsonl")
    start = begun()
    config: Config = start.run.config.model_copy(
        update={"data": start.run.config.data.model_copy(update={"files": (str(file),)})}
    )
    gc.collect()
    tracemalloc.start()
    try:
        data = load_splits(config)
        check_pairs(data)
        kept = split_examples(start.run, data.train)
        gc.collect()
        assert sum(map(len, kept)) == len(data.train)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("few", "many"), [(200, 800), pytest.param(2000, 22_000, marks=pytest.mark.slow)])
def test_rows_take_little_memory(
    begun: Callable[..., Any], write_rows: Callable[..., Path], few: int, many: int
) -> None:
    first, last = (held_bytes(begun, write_rows, count) for count in (few, many))
    assert (last - first) / (many - few) < BYTES_PER_ROW
