"""The reward-function file for OpenRLHF: `--reward.remote_url path/to/this_file.py`.

The environment variable DMOERM_MODEL is the path of a model folder, which is loaded once, or the URL of a reward
server. The file follows the interface that OpenRLHF 0.11 documents. OpenRLHF is not a dependency.

OpenRLHF executes this file by its path, outside of any package, so its imports are absolute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dmoerm.chat.rendered import response_text
from dmoerm.integrations.scoring import as_prompt, open_scorer, score_samples, tasks_of
from dmoerm.scores import log_columns


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Any = None, **_: Any) -> dict[str, Any]:
    """Score n responses, to any prompts.

    Args:
        queries: each prompt with its response as one text, with special tokens.
        prompts: the prompts as the policy reads them: in the format of ChatML, Llama 3 or Gemma, or plain text.
        labels: ignored.

    Returns:
        `rewards` and `scores`: (n,), the rewards. `extra_logs`: name → (n,); see `dmoerm.scores.log_columns`.

    Raises:
        DataError: a query does not contain its prompt.
        ConfigError: DMOERM_MODEL is not set.
    """
    scorer = open_scorer()
    texts = [response_text(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
    scores = score_samples(scorer, [(None, as_prompt(p), text) for p, text in zip(prompts, texts, strict=True)])
    rewards = torch.tensor([score.reward for score in scores])
    logs = {name: torch.tensor(column) for name, column in log_columns(scores, tasks_of(scorer)).items()}
    return {"rewards": rewards, "scores": rewards.clone(), "extra_logs": logs}
