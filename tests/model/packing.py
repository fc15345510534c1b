"""Prompts with their responses as packed tokens, and the same as separate sequences."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from dmoerm.model import attention as module
from dmoerm.model.layers import Decoder, run, split_layers
from dmoerm.model.packing import Outputs, Packed, Packing

KINDS = ["llama", "qwen2", "qwen3", "mistral"]
each_kind = pytest.mark.parametrize("kind", KINDS)
Waste = tuple[int, int] | None
each_waste = pytest.mark.parametrize("waste", [None, (1, 0)], ids=["waste as set", "no waste"])


@contextlib.contextmanager
def allowing(waste: Waste) -> Iterator[None]:
    """Set the bound on padding. With the default one, all tiny texts are in one group."""
    with pytest.MonkeyPatch.context() as patch:
        if waste is not None:
            patch.setattr(module, "_MAX_WASTE", waste[0])
            patch.setattr(module, "_FREE_AREA", waste[1])
        yield


def sequences(lengths: Sequence[int], vocabulary: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocabulary, (length,), generator=generator) for length in lengths]


def random_ids(packing: Packing, vocabulary: int, seed: int = 0) -> Packed:
    return Packed(torch.cat(sequences([*packing.prompts, *packing.responses], vocabulary, seed)), packing)


def example(model: Decoder, seed: int = 0) -> Packed:
    """Three prompts with 2, 3 and 1 responses of different lengths in mixed order; the longest text has 16 tokens."""
    packing = Packing([9, 4, 13], [5, 1, 8, 3, 7, 2], [1, 0, 1, 2, 0, 1])
    return random_ids(packing, model.config.vocab_size, seed)


def parts(inputs: Packed) -> tuple[list[Tensor], list[Tensor]]:
    """Return the prompts and the responses."""
    packing = inputs.packing
    actual = list(inputs.tokens.split([*packing.prompts, *packing.responses]))
    return actual[: len(packing.prompts)], actual[len(packing.prompts) :]


def texts(inputs: Packed) -> list[Tensor]:
    """Return each prompt with its response."""
    prompts, responses = parts(inputs)
    return [torch.cat([prompts[q], response]) for q, response in zip(inputs.packing.owner, responses, strict=True)]


def through(model: Decoder, layer: int, ids: Packed, outputs: Outputs = "all") -> Tensor:
    """Run trunk and branch; return the requested states (…, d)."""
    trunk, branch = split_layers(model, layer)
    hidden = ids if trunk is None else ids._replace(tokens=run(trunk, ids)[0])
    return run(branch, hidden, outputs)[0]


def plain(*models: Decoder) -> Callable[[Tensor], Tensor]:
    """Return a function from a sequence (T,) or (T, d) to states (T, d) by the models' own forward."""

    def states_of(sequence: Tensor) -> Tensor:
        for model in models:
            name = "inputs_embeds" if sequence.is_floating_point() else "input_ids"
            sequence = model(**{name: sequence[None]}).last_hidden_state[0]
        return sequence

    return states_of


def separate(states_of: Callable[[Tensor], Tensor], inputs: Packed, outputs: Outputs = "all") -> Tensor:
    """Return the states (…, d) of sequences that run separately."""
    packing = inputs.packing
    whole = [states_of(text)[start:] for text, start in zip(texts(inputs), packing.starts, strict=True)]
    if outputs == "last":
        return torch.stack([states[-1] for states in whole])
    prompts = [states_of(prompt) for prompt in parts(inputs)[0]] if outputs == "all" else []
    return torch.cat([*prompts, *whole])


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()
