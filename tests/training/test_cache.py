"""The activation cache: what the trunk would give, computed once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dmoerm.chat.encoding import Encoded
from dmoerm.model.packing import pack, pack_ids
from dmoerm.training.cache import ActivationCache


def fresh(begun: Any, **kept: bool) -> ActivationCache:
    """The cache as another process finds it."""
    settings = {"hidden": begun.run.cache.hidden, "embedding": begun.run.cache.embedding} | kept
    return ActivationCache(begun.run.cache.folder.parent, begun.run.model, **settings)


def forbid_computing(cache: ActivationCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(batch: Any) -> Any:
        raise AssertionError(f"{len(batch)} examples computed again")

    monkeypatch.setattr(cache, "_compute", compute)


@pytest.mark.parametrize("changes", [{}, {"base": "frozen"}, {"router": {"kind": "own"}}])
@torch.no_grad()
def test_it_holds_what_the_trunk_gives_alone(begun: Callable[..., Any], changes: dict[str, Any]) -> None:
    start = begun(**changes)
    model, cache = start.run.model, start.run.cache
    for example in start.train[:4]:
        hidden = model.hidden(pack_ids([example.encoded]))
        found = pack([cache.states(example.encoded)])
        assert found.packing.responses == hidden.packing.responses
        torch.testing.assert_close(found.tokens, hidden.tokens, atol=1e-5, rtol=1e-4)
        if cache.route:
            route = hidden.prompt_embeddings()[0]
            torch.testing.assert_close(cache.prompt(example.encoded), route, atol=1e-5, rtol=1e-4)
        if cache.embedding:
            embeddings = cache.embeddings(example.encoded)
            torch.testing.assert_close(embeddings, model.general.embed(hidden), atol=1e-5, rtol=1e-4)


def test_only_what_is_new_is_computed(begun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    start = begun()
    told: list[tuple[int, int]] = []
    again, texts = fresh(start), [e.encoded for e in (*start.train, *start.validation)]
    forbid_computing(again, monkeypatch)
    again.fill(texts, lambda *progress: told.append(progress))
    assert told == []
    assert torch.equal(again.states(texts[0])[0], start.run.cache.states(texts[0])[0])
    wanting = fresh(start, embedding=True)  # the earlier run kept no embeddings
    forbid_computing(wanting, monkeypatch)
    with pytest.raises(AssertionError, match="computed again"):
        wanting.fill(texts)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed"])
def test_a_damaged_shard_is_computed_again(begun: Callable[..., Any], damage: str) -> None:
    start = begun()
    expected = start.run.cache.states(start.train[0].encoded)[0].clone()
    (shard,) = start.run.cache.folder.glob("*.safetensors")
    if damage == "removed":
        shard.unlink()
    else:
        content = shard.read_bytes()
        shard.unlink()  # the first cache still has it mapped
        shard.write_bytes(content[: len(content) // 2 if damage == "truncated" else 0])
    again = fresh(start)
    told: list[tuple[int, int]] = []
    again.fill([e.encoded for e in start.train], lambda *progress: told.append(progress))
    assert told[-1][0] == told[-1][1] > 0
    torch.testing.assert_close(again.states(start.train[0].encoded)[0], expected, atol=1e-5, rtol=1e-4)


def test_other_backbones_and_cuts_have_other_folders(
    begun: Callable[..., Any], backbones: Callable[[str], str]
) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"backbone": {"branch_layer": 1}},
        {"backbone": {"path": backbones("qwen3")}},
        {"backbone": {"num_layers": 3}},
    ]
    folders = {begun(**change).run.cache.folder for change in changes}
    assert len(folders) == len(changes)
    assert begun(seed=5, output="elsewhere").run.cache.folder in folders


def test_any_changed_weight_of_the_trunk_makes_another_folder(begun: Callable[..., Any]) -> None:
    start = begun()
    with torch.no_grad():
        start.run.model.trunk.layers[1].mlp.down_proj.weight.mul_(1.01)
    assert fresh(start).folder != start.run.cache.folder


def test_the_folder_stays_within_its_limit(begun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest shards go, whichever trunk they belong to; what this run reads stays."""
    start, other = begun(), begun(backbone={"branch_layer": 1})
    (mine,), (foreign,) = (list(s.run.cache.folder.glob("*.safetensors")) for s in (start, other))
    again = fresh(start)
    again._limit = 2.5 * mine.stat().st_size
    again.fill([e.encoded for e in start.train])
    monkeypatch.setattr("dmoerm.training.cache._SHARD_TOKENS", 50)
    new = [Encoded([*e.encoded.prompt, 5], e.encoded.responses) for e in start.train]
    again.fill(new)
    assert not foreign.exists()
    assert mine.exists()
    for text in new:
        again.states(text)


def disk(folder: Path) -> int:
    """The bytes that a cache's root takes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("changes", [{}, {"base": "frozen"}])
def test_what_does_not_fit_the_limit_is_computed_when_it_is_read(
    begun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr("dmoerm.training.cache._SHARD_TOKENS", 50)
    start = begun(**changes)
    whole, texts = start.run.cache, [e.encoded for e in start.train]
    kept = {"hidden": whole.hidden, "embedding": whole.embedding}
    for root, limit in (("some", disk(whole.folder) // 3), ("none", 1000)):
        cache = ActivationCache(tmp_path / root, start.run.model, **kept, limit=limit)
        left = cache.fill(texts)
        assert disk(tmp_path / root) <= limit
        assert 0 < left <= len(texts)
        assert left == len(texts) or root == "some"
        for text in texts:
            torch.testing.assert_close(cache.states(text), whole.states(text), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(cache.prompt(text), whole.prompt(text), atol=1e-5, rtol=1e-4)
            if cache.embedding:
                torch.testing.assert_close(cache.embeddings(text), whole.embeddings(text), atol=1e-5, rtol=1e-4)


def test_a_limit_of_0_switches_it_off(begun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    start = begun()
    whole, texts = start.run.cache, [e.encoded for e in start.train[:3]]
    off = ActivationCache(whole.root / "off", start.run.model, hidden=True, embedding=False, limit=0)
    with monkeypatch.context() as patch:
        forbid_computing(off, patch)
        assert off.fill([*texts, texts[0]]) == 3
    torch.testing.assert_close(off.states(texts[0]), whole.states(texts[0]), atol=1e-5, rtol=1e-4)
    assert not (whole.root / "off").exists()
