"""Where each token of a pass stands, and the way there and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dmoerm.chat.encoding import Encoded
from dmoerm.model.attention import Buckets
from dmoerm.model.packing import Packed, Packing, PaddedRows, batches, chunks, means, pack

from .packing import parts, random_ids, texts


@st.composite
def packings(draw: st.DrawFn) -> Packing:
    """Up to 4 prompts with up to 7 responses in any order."""
    prompts = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    more = draw(st.lists(st.integers(0, len(prompts) - 1), max_size=3))
    owner = draw(st.permutations([*range(len(prompts)), *more]))
    return Packing(prompts, draw(st.lists(st.integers(1, 7), min_size=len(owner), max_size=len(owner))), owner)


def numbered(packing: Packing) -> Packed:
    """The token ids are the indices of the tokens."""
    return Packed(torch.arange(sum(packing.prompts) + sum(packing.responses)), packing)


def same(actual: list[Tensor], expected: list[Tensor]) -> bool:
    return len(actual) == len(expected) and all(map(torch.equal, actual, expected))


# --- who stands where ----------------------------------------------------------------------------------------------


def test_a_packing_by_hand() -> None:
    packing = Packing([4, 2], [3, 2, 4], [0, 0, 1])
    assert packing.positions.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6, 4, 5, 2, 3, 4, 5]
    assert packing.last.tolist() == [8, 10, 14]
    assert packing.starts == [4, 4, 2]
    assert packing.longest == 7
    assert packing.of_prompt.tolist() == [0, 0, 0, 0, 1, 1]
    assert packing.of_response.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]


@given(packing=packings())
def test_positions_count_through_each_text(packing: Packing) -> None:
    positions = Packed(packing.positions, packing)
    assert packing.last.tolist() == [int(text[-1]) for text in texts(numbered(packing))]
    assert same(texts(positions), [torch.arange(len(text)) for text in texts(positions)])
    assert same(parts(positions)[0], [torch.arange(n) for n in packing.prompts])
    assert packing.longest == max(map(len, texts(positions)))


# --- some of the responses -----------------------------------------------------------------------------------------


@given(packing=packings(), data=st.data())
def test_select_keeps_each_response_with_its_prompt(packing: Packing, data: st.DataObject) -> None:
    inputs = random_ids(packing, 100)
    rows = data.draw(st.lists(st.integers(0, len(packing.responses) - 1), min_size=1, max_size=6, unique=True))
    part = inputs.select(rows)
    everything = texts(inputs)
    assert same(texts(part), [everything[n] for n in rows])
    if rows != list(range(len(packing.responses))):
        assert len(part.packing.prompts) == len({packing.owner[n] for n in rows})


def test_selecting_all_rows_returns_the_input() -> None:
    inputs = random_ids(Packing([2, 3], [1, 2, 2], [1, 0, 1]), 9)
    assert inputs.select([0, 1, 2]) is inputs
    assert same(texts(inputs.select([2, 1, 0])), texts(inputs)[::-1])


# --- together and apart --------------------------------------------------------------------------------------------

queries = st.lists(
    st.tuples(st.integers(1, 7), st.lists(st.integers(1, 7), min_size=1, max_size=4)), min_size=1, max_size=4
)


@pytest.mark.parametrize("width", [(), (3,)], ids=["ids", "states"])
@given(lengths=queries)
def test_split_undoes_pack(width: tuple[int, ...], lengths: list[tuple[int, list[int]]]) -> None:
    given = [(torch.randn(p, *width), [torch.randn(r, *width) for r in responses]) for p, responses in lengths]
    packed = pack(given)
    assert packed.packing.prompts == [p for p, _ in lengths]
    assert packed.packing.owner == [q for q, (_, responses) in enumerate(lengths) for _ in responses]
    for (prompt, responses), (own_prompt, own_responses) in zip(packed.split(), given, strict=True):
        assert torch.equal(prompt, own_prompt)
        assert same(responses, own_responses)


# --- rows for attention --------------------------------------------------------------------------------------------


@given(rows=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=4), k=st.integers(1, 3))
def test_unpad_undoes_pad(rows: list[list[int]], k: int) -> None:
    rows_of_tokens, states = PaddedRows(rows, 10, torch.device("cpu")), torch.randn(k, 10, 2)
    padded = rows_of_tokens.pad(states)
    assert padded.shape == (k * len(rows), max(map(len, rows)), 2)
    for i, row in enumerate(rows * k):
        assert torch.equal(padded[i, : len(row)], states[i // len(rows), row])
    assert torch.equal(rows_of_tokens.unpad(padded, k), states[:, [index for row in rows for index in row]])


# --- means ---------------------------------------------------------------------------------------------------------


@given(packing=packings())
def test_prompt_embeddings_are_over_each_prompts_own_tokens(packing: Packing) -> None:
    states = torch.randn(sum(packing.prompts) + sum(packing.responses), 3)
    expected = torch.stack([torch.cat([prompt.mean(0), prompt[-1]]) for prompt in parts(Packed(states, packing))[0]])
    torch.testing.assert_close(Packed(states, packing).prompt_embeddings(), expected)


def test_means_by_hand_are_in_float32() -> None:
    states = torch.tensor([[[1.0], [3.0], [8.0]], [[0.0], [0.5], [2.0]]], dtype=torch.bfloat16)
    actual = means(states, torch.tensor([0, 0, 1]), torch.tensor([2, 1]))
    assert actual.dtype is torch.float32
    assert actual.tolist() == [[[2.0], [8.0]], [[0.25], [2.0]]]


def test_a_packing_moves_to_a_device_with_its_tokens() -> None:
    inputs = random_ids(Packing([2, 3], [1, 2], [1, 0]), 9)
    moved = inputs.to("meta")
    assert {moved.tokens.device, moved.packing.positions.device, moved.packing.last.device} == {torch.device("meta")}
    assert moved.packing.owner == inputs.packing.owner
    assert inputs.packing.to("cpu") is inputs.packing
    part = moved.select([1])
    assert {part.tokens.device, part.packing.last.device} == {moved.tokens.device}
    for group in moved.packing.derived(Buckets).of("last")[0]:
        assert group.mask(torch.float32, 1).device == moved.tokens.device


# --- batches -------------------------------------------------------------------------------------------------------


@given(
    shapes=st.lists(st.tuples(st.integers(1, 50), st.lists(st.integers(1, 50), min_size=1, max_size=3)), max_size=12),
    budget=st.integers(1, 400),
)
def test_batches_contain_every_query_once_within_the_budget(shapes: list[Any], budget: int) -> None:
    encoded = [Encoded([0] * prompt, [[0] * n for n in lengths]) for prompt, lengths in shapes]
    actual = list(batches(encoded, budget))
    assert sorted(i for rows in actual for i in rows) == list(range(len(encoded)))
    for rows in actual:
        assert len(rows) == 1 or sum(encoded[i].tokens for i in rows) <= budget


@given(
    prompt=st.integers(1, 30),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    budget=st.integers(1, 80),
)
def test_chunks_are_parts_of_the_query_within_the_budget(prompt: int, lengths: list[int], budget: int) -> None:
    encoded = Encoded(list(range(prompt)), [[n] * length for n, length in enumerate(lengths)])
    actual = list(chunks(encoded, budget))
    assert [response for _, piece in actual for response in piece.responses] == encoded.responses
    assert [first for first, _ in actual] == [piece.responses[0][0] for _, piece in actual]
    assert all(piece.tokens <= max(budget, 2 * prompt) or len(piece.responses) == 1 for _, piece in actual)
    assert all(piece.prompt == encoded.prompt for _, piece in actual)
    whole = encoded.tokens + 20 * len(actual)  # a piece wastes less than a response's length
    assert sum(piece.tokens for _, piece in actual) <= 2 * whole
