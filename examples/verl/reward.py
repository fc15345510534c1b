"""The file for verl's `custom_reward_function.path`. DMOERM_MODEL names the checkpoint folder or a server's URL."""

from dmoerm.integrations.verl import compute_reward, compute_score, compute_score_async, compute_score_batch

__all__ = ["compute_reward", "compute_score", "compute_score_async", "compute_score_batch"]
