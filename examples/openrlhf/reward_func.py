"""The reward-function file that OpenRLHF loads; the model's folder: the environment variable DMOERM_MODEL."""

from dmoerm.integrations.openrlhf import reward_func

__all__ = ["reward_func"]
