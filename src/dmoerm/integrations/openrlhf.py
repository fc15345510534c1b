"""A DMoERM as the reward-function file of OpenRLHF: `--reward.remote_url path/to/this_file.py`.

The environment variable DMOERM_MODEL names the model's folder, which is read once, or a reward server's URL. Written
against the interface that OpenRLHF 0.11 documents for such files; OpenRLHF itself is no dependency, and its own tests
are not run here.

OpenRLHF executes this file by its path, outside of any package, so its imports are absolute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dmoerm.chat.rendered import response_text
from dmoerm.integrations.scoring import as_prompt, score_samples
from dmoerm.integrations.source import open_scorer, tasks_of
from dmoerm.scores import log_columns


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Any = None, **_: Any) -> dict[str, Any]:
    """Scores responses of any prompts.

    Args:
        queries: prompt and response as one text, special tokens kept.
        prompts: the prompts as the policy read them: in ChatML, Llama 3's or Gemma's format, or plain text.
        labels: not looked at.

    Returns:
        `rewards` and `scores`: (n,), the reward. `extra_logs`: name → (n,), see `dmoerm.scores.log_columns`.

    Raises:
        DataError: a query does not hold its prompt.
        ConfigError: DMOERM_MODEL is not set.
    """
    scorer = open_scorer()
    texts = [response_text(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
    scores = score_samples(scorer, [(None, as_prompt(p), text) for p, text in zip(prompts, texts, strict=True)])
    rewards = torch.tensor([score.reward for score in scores])
    logs = {name: torch.tensor(column) for name, column in log_columns(scores, tasks_of(scorer)).items()}
    return {"rewards": rewards, "scores": rewards.clone(), "extra_logs": logs}
