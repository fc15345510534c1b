"""Responses of a policy, the log-probabilities of their tokens, and a reward model as TRL's reward function.

Rewards are normalized by the rewards of the initial policy's samples: (r − mean) / std, with the mean over all samples
and the standard deviation within prompts, because preferences do not determine differences between prompts. A value of
`beta` then means the same for every reward model. An empty response gets less than every other: one standard deviation
below the lowest reward of its batch and of the initial policy's samples, because methods differ in the unit of rewards.

Shapes: R responses of one batch, L tokens of the longest prompt and response.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerBase

from dmoerm.errors import TrainingError, shorten
from dmoerm.schema import Prompt, Query, is_empty
from dmoerm.scores import group_by_prompt
from evidence.rl.policy import RLConfig

_SAMPLED_ROWS, _SCORED_ROWS = 128, 32  # maximum of responses in a batch
_LOGITS = 2**26  # maximum of logits in memory


@dataclass(frozen=True)
class Sample:
    """One response of a policy.

    Attributes:
        prompt, response: token ids; the response includes its end token, if there is one.
        text: the decoded response; may be empty.
        ended: whether it ends with the end token rather than at the limit.
    """

    prompt: list[int]
    response: list[int]
    text: str
    ended: bool


@contextlib.contextmanager
def isolated_randomness(seed: int) -> Iterator[None]:
    """Seed the block's random numbers and restore the generator after it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def sample(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], count: int, settings: RLConfig
) -> list[Sample]:
    """Sample `count` responses to each prompt without truncation or penalty, with torch's global generator."""
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    config = GenerationConfig(
        do_sample=True,
        temperature=settings.temperature,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        max_new_tokens=settings.max_new_tokens,
        pad_token_id=pad,
        eos_token_id=end,
        num_return_sequences=count,
    )
    samples: list[Sample] = []
    rows = max(_SAMPLED_ROWS // count, 1)
    for start in range(0, len(prompts), rows):
        batch = tokenizer(list(prompts[start : start + rows]), padding=True, return_tensors="pt").to(model.device)
        ids = model.generate(**batch, generation_config=config)[:, batch["input_ids"].shape[1] :].tolist()
        for row, response in enumerate(ids):
            mask = batch["attention_mask"][row // count].bool()
            ended = end in response
            kept = response[: response.index(end) + 1] if ended else response
            text = str(tokenizer.decode(kept, skip_special_tokens=True)).strip()
            samples.append(Sample(batch["input_ids"][row // count][mask].tolist(), kept, text, ended))
    return samples


@torch.no_grad()
def log_probabilities(model: Any, samples: Sequence[Sample], temperature: float) -> list[Tensor]:
    """Return, for each sample, the log-probability of every token of its response: float32, on the CPU."""
    longest = max(len(s.prompt) + len(s.response) for s in samples)
    rows = min(_SCORED_ROWS, max(_LOGITS // (longest * model.config.vocab_size), 1))
    scores: list[Tensor] = []
    for start in range(0, len(samples), rows):
        batch = samples[start : start + rows]
        texts = [torch.tensor(s.prompt + s.response) for s in batch]
        ids = pad_sequence(texts, batch_first=True).to(model.device)  # (R, L), padded on the right
        mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True).to(model.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float() / temperature
        chosen = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].cpu()  # (R, L - 1)
        scores += [row[len(s.prompt) - 1 :][: len(s.response)] for row, s in zip(chosen, batch, strict=True)]
    return scores


# --- rewards --------------------------------------------------------------------------------------------------------

Reward = Callable[[Sequence[Query]], list[list[float]]]
"""Queries → one reward per response for each query; higher is better."""


class RLPrompt(NamedTuple):
    """A prompt for optimization or measurements; `task` is None if it is not known."""

    task: str | None
    prompt: Prompt


class Scale(BaseModel):
    """Statistics of the rewards of the initial policy's samples; `std` is within prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    mean: float
    std: float
    lowest: float

    def normalize(self, reward: float) -> float:
        """Return the reward in standard deviations above the initial policy's mean."""
        return (reward - self.mean) / self.std


def raw_rewards(
    reward: Reward, prompts: Sequence[RLPrompt], texts: Sequence[str], step: int, scale: Scale | None = None
) -> list[float]:
    """Return one reward per response, in order; `prompts` has each response's prompt.

    Args:
        step: the step, for error messages.
        scale: statistics of the initial policy's samples, or None if the responses are these samples.
    """
    with_text = [index for index, text in enumerate(texts) if not is_empty(text)]
    groups = group_by_prompt((prompts[i].task, prompts[i].prompt, texts[i]) for i in with_text)
    rows = reward([query for query, _ in groups]) if groups else []
    by_index: dict[int, float] = {}
    for (query, indices), values in zip(groups, rows, strict=True):
        members = [with_text[index] for index in indices]
        if len(values) != len(members):
            raise TrainingError(
                f"step {step}: {len(values)} rewards for {len(members)} responses; fix the reward function"
            )
        for number, value in enumerate(values):
            if not math.isfinite(value):
                raise TrainingError(
                    f"step {step}: the reward of response {number}, {shorten(query.responses[number])}, to the prompt "
                    f"{shorten(query.prompt)} is {value}; fix the reward model, or lower its learning rate"
                )
        by_index |= dict(zip(members, map(float, values), strict=True))
    given = list(by_index.values())
    if scale is not None:
        empty = min([*given, scale.lowest]) - scale.std
    else:
        empty = min(given) - float(np.std(given) or 1.0) if given else 0.0
    return [by_index.get(index, empty) for index in range(len(texts))]


def measure_scale(rewards: Sequence[float], count: int) -> Scale:
    """Compute the scale from rewards of the initial policy's samples, `count` per prompt, prompt after prompt."""
    table = np.asarray(rewards, dtype=float).reshape(-1, count)
    std = float(np.sqrt(table.var(axis=1, ddof=1).mean()))
    if std < 1e-12:
        raise TrainingError(
            "step 0: the reward model gives all responses to a prompt the same reward, so nothing can be optimized; "
            "use another reward model or raise scale_prompts"
        )
    return Scale(mean=float(table.mean()), std=std, lowest=float(table.min()))


class TRLReward:
    """The reward function of TRL's trainers; the dataset's column `prompt_index` is each row's prompt."""

    __name__ = "reward"

    def __init__(self, reward: Reward, prompts: Sequence[RLPrompt], scale: Scale, end: int, settings: RLConfig) -> None:
        """Create the function; `end` is the id of the end token."""
        self.reward, self.prompts, self.scale, self.end, self.settings = reward, prompts, scale, end, settings

    def __call__(
        self,
        completions: list[str],
        prompt_index: list[int],
        trainer_state: Any,
        completion_ids: Sequence[Sequence[int]],
        **_: Any,
    ) -> list[float]:
        """Return the normalized rewards of the completions, less the penalty of those without an end token."""
        prompts, texts = [self.prompts[i] for i in prompt_index], [text.strip() for text in completions]
        step = trainer_state.global_step // self.settings.updates + 1
        raw = raw_rewards(self.reward, prompts, texts, step, self.scale)
        penalties = [self.settings.missing_eos_penalty * (not ids or ids[-1] != self.end) for ids in completion_ids]
        return [self.scale.normalize(value) - penalty for value, penalty in zip(raw, penalties, strict=True)]
