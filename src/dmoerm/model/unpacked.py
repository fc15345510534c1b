"""A pass of packed tokens through a model's own forward, for backbones whose layers cannot run on packed tokens.

Each response becomes a padded row of its own with its prompt, so a prompt is computed once per response. A prompt's
states are those of the prompt alone, as in a packed pass, also if the model is an encoder, whose tokens see later ones.

Shapes as in packing.py.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .packing import Packed, Packing, runs
from .padded_rows import PaddedRows
from .transfer import to_device

Outputs = Literal["all", "responses", "last"]
"""The states that a pass returns: of all T tokens, of the responses' tokens, or of the N responses' last tokens."""


def run_unpacked(model: PreTrainedModel, inputs: Packed, outputs: Outputs = "all", num_experts: int = 1) -> Tensor:
    """Run a whole model over token ids. Gradients flow.

    Args:
        outputs: the states to return.
        num_experts: k, the number of experts in the model's linear layers; the same tokens pass through each.

    Returns:
        States (k, …, d).
    """
    tokens, packing = inputs
    prompts, responses = runs(packing.prompts, 0), runs(packing.responses, packing.prompt_tokens)
    rows = [[*prompts[q], *response] for q, response in zip(packing.owner, responses, strict=True)]
    states = _states(model, tokens, rows, num_experts)
    if outputs == "last":
        return states[:, _ends(rows, packing)]
    kept = torch.tensor(
        [i for row, start in zip(runs(list(map(len, rows)), 0), packing.starts, strict=True) for i in row[start:]]
    )
    of_responses = states[:, to_device(kept, states.device)]
    if outputs == "responses":
        return of_responses
    return torch.cat([_states(model, tokens, prompts, num_experts), of_responses], 1)


def _states(model: PreTrainedModel, tokens: Tensor, rows: list[Any], k: int) -> Tensor:
    """Return the states (k, tokens of all rows, d) of rows, given as indices of their tokens."""
    padded = PaddedRows(rows, len(tokens), tokens.device)
    ids = padded.pad(tokens[None]).repeat(k, 1)
    lengths = to_device(torch.tensor(list(map(len, rows))), tokens.device)
    mask = (torch.arange(padded.width, device=tokens.device) < lengths[:, None]).repeat(k, 1)
    return padded.unpad(whole_forward(model, ids, mask), k)


def whole_forward(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the last states (Q, P, d) of right-padded ids (Q, P), where the mask is 1, or true, at tokens.

    It runs without the key-value cache, which models fill by default.
    """
    options = {"use_cache": False} if getattr(model.config, "use_cache", False) else {}
    return model(input_ids=ids, attention_mask=mask.long(), **options).last_hidden_state


def _ends(rows: list[list[int]], packing: Packing) -> Tensor:
    """Return the index of each row's last token among the tokens of all rows."""
    return to_device(torch.tensor(list(map(len, rows))).cumsum(0) - 1, packing.device)
