"""The reward-function file that OpenRLHF loads. DMOERM_MODEL names the checkpoint folder or a server's URL."""

from dmoerm.integrations.openrlhf import reward_func

__all__ = ["reward_func"]
