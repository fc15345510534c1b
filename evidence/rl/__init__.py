"""Policy optimization against a reward model, with the gold reward measured along the way.

policy.py     the settings, and the small language model that is optimized, fine-tuned on the testbed's text
sampling.py   responses of a policy, their log-probabilities, and a reward model as TRL's reward function
measuring.py  proxy, gold and KL on held-out prompts
optimize.py   the run: TRL's trainer, checkpoints, periodic measurements
trainers.py   TRL's trainers, and PPO with a critic
"""

from evidence.rl.measuring import Point
from evidence.rl.optimize import draw_prompts, optimize
from evidence.rl.policy import PolicyConfig, RLConfig, make_policy
from evidence.rl.sampling import RLPrompt

__all__ = ["Point", "PolicyConfig", "RLConfig", "RLPrompt", "draw_prompts", "make_policy", "optimize"]
