"""The file that verl's `custom_reward_function.path` names; the model's folder or a server's URL: DMOERM_MODEL."""

from dmoerm.integrations.verl import compute_score, compute_score_batch

__all__ = ["compute_score", "compute_score_batch"]
