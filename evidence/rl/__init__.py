"""Policy optimization against a reward model, with the gold reward measured along the way.

policy.py      the small language model that is optimized, fine-tuned on the testbed's text
sampling.py    responses of a policy, and their log-probabilities under two policies
rewards.py     a reward model as TRL's reward function: normalized, checked, lowest for empty responses
measuring.py   proxy, gold and KL on held-out prompts
optimize.py    the run: TRL's trainer, checkpoints, periodic measurements
policy_settings.py  the settings of the policy and of its optimization
trajectory.py  the measurements on disk
"""

from evidence.rl.optimize import draw_prompts, gold_of, optimize
from evidence.rl.policy import make_policy
from evidence.rl.policy_settings import PolicyConfig, RLConfig
from evidence.rl.rewards import Gold, Reward, RLPrompt
from evidence.rl.trajectory import Point, Trajectory, read_trajectory, write_trajectory

__all__ = [
    "Gold",
    "Point",
    "PolicyConfig",
    "RLConfig",
    "RLPrompt",
    "Reward",
    "Trajectory",
    "draw_prompts",
    "gold_of",
    "make_policy",
    "optimize",
    "read_trajectory",
    "write_trajectory",
]
