"""A model in the form that TRL's `get_reward` reads: `trl.experimental.utils` of TRL 1.16, PPO of earlier releases.

`get_reward(model, query_responses, pad_token_id, context_length)` calls what `base_model_prefix` names, applies
`score` to its last hidden states, and takes the value at each response's last token. Here the hidden states are
the rewards themselves, equal at every position, and `score` leaves them as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ..model import DMoERM


class RewardModule(nn.Module):
    """A reward model for TRL's `get_reward`.

    The sequences are conversations in the tokenizer and the chat template of the reward model, so the policy must have
    the same, with the same pad token or one that occurs in no conversation.

    Args:
        model: the model; its weights are not trained.
    """

    base_model_prefix = "rewards"

    def __init__(self, model: DMoERM) -> None:
        super().__init__()
        self._model, self.score = model, nn.Identity()

    def rewards(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        """Return the rewards of sequences (B, T) as hidden states (B, T, 1). Raises as `DMoERM.forward` does."""
        pad: Any = self._model.tokenizer.pad_token_id
        if attention_mask is not None and pad is not None:  # TRL also masks pad tokens that end a turn
            mask = attention_mask.int()
            inside = (mask.cumsum(1) > 0) & (mask.flip(1).cumsum(1).flip(1) > 0)
            input_ids, attention_mask = input_ids.masked_fill(inside & (mask == 0), pad), inside
        with torch.no_grad():
            logits = self._model(input_ids=input_ids, attention_mask=attention_mask).logits
        states = logits[:, None].expand(-1, input_ids.shape[1], -1)
        return BaseModelOutput(last_hidden_state=states, hidden_states=(states,))  # TRL reads either
