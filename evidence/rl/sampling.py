"""Responses of a policy, and the log-probabilities of their tokens.

Shapes: R responses of one batch, L tokens of the longest prompt and response.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from dmoerm.model.backbone import resolve_dtype

_SAMPLED_ROWS, _SCORED_ROWS = 128, 32  # most responses of one batch
_LOGITS = 2**26  # most logits in memory at once


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


def sampling_settings(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float) -> dict[str, Any]:
    """Return arguments of `GenerationConfig` for sampling from the policy without truncation or penalty."""
    return {
        "do_sample": True,
        "temperature": temperature,
        "top_k": 0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "max_new_tokens": max_new_tokens,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def uses_bf16(bf16: bool | None) -> bool:
    """Return whether to compute in bfloat16; None: if the processor supports it."""
    return resolve_dtype("auto") == torch.bfloat16 if bf16 is None else bf16


@torch.no_grad()
def sample(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], count: int, settings: dict[str, Any]
) -> list[Sample]:
    """Sample `count` responses to each prompt, in the order of the prompts, with torch's global generator."""
    samples: list[Sample] = []
    rows = max(_SAMPLED_ROWS // count, 1)
    for start in range(0, len(prompts), rows):
        batch = tokenizer(list(prompts[start : start + rows]), padding=True, return_tensors="pt").to(model.device)
        config = GenerationConfig(**settings, num_return_sequences=count)
        ids = model.generate(**batch, generation_config=config)[:, batch["input_ids"].shape[1] :].tolist()
        for row, response in enumerate(ids):
            mask = batch["attention_mask"][row // count].bool()
            samples.append(_sample(tokenizer, batch["input_ids"][row // count][mask].tolist(), response))
    return samples


def _sample(tokenizer: PreTrainedTokenizerBase, prompt: list[int], response: list[int]) -> Sample:
    end = tokenizer.eos_token_id
    ended = end in response
    kept = response[: response.index(end) + 1] if ended else response  # pyright: ignore[reportArgumentType]
    return Sample(prompt, kept, str(tokenizer.decode(kept, skip_special_tokens=True)).strip(), ended)


@torch.no_grad()
def log_probabilities(model: Any, samples: Sequence[Sample], temperature: float) -> list[Tensor]:
    """Return, for each sample, the log-probability of every token of its response: float32, on the CPU."""
    length = lambda i: len(samples[i].prompt) + len(samples[i].response)  # noqa: E731
    order, scores = sorted(range(len(samples)), key=length), {}  # similar lengths together, to pad little
    rows = min(_SCORED_ROWS, max(_LOGITS // (length(order[-1]) * model.config.vocab_size), 1))
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        scores |= dict(zip(batch, _log_probabilities(model, [samples[i] for i in batch], temperature), strict=True))
    return [scores[i] for i in range(len(samples))]


def _log_probabilities(model: Any, samples: Sequence[Sample], temperature: float) -> list[Tensor]:
    texts = [torch.tensor(s.prompt + s.response) for s in samples]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).to(model.device)  # (R, L); padding is masked
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in texts], batch_first=True).to(model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float() / temperature
    chosen = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].cpu()  # (R, L - 1)
    return [row[len(s.prompt) - 1 :][: len(s.response)] for row, s in zip(chosen, samples, strict=True)]


@dataclass(frozen=True)
class Divergence:
    """Estimates of KL(policy ‖ reference) in nats per response, from samples of the policy.

    Attributes:
        kl: mean of Σ_t log π(t) − log π_ref(t); unbiased, may be slightly negative near 0.
        kl_k3: mean of Σ_t (ρ − 1 − log ρ), ρ = π_ref(t)/π(t); never negative and less noisy near 0. With few samples it
            is too small if the policy hardly produces frequent responses of the reference
            (http://joschu.net/blog/kl-approx.html).
        kl_error: standard error of `kl`, as if the samples were independent.
    """

    kl: float
    kl_k3: float
    kl_error: float


def divergence(policy: Sequence[Tensor], reference: Sequence[Tensor]) -> Divergence:
    """Estimate the divergence from the log-probabilities of the same responses' tokens under both models."""
    ratios = [(p - r).double() for p, r in zip(policy, reference, strict=True)]  # log π − log π_ref
    k1 = torch.stack([ratio.sum() for ratio in ratios])
    k3 = torch.stack([(torch.expm1(-ratio) + ratio).sum() for ratio in ratios])
    error = float(k1.std(correction=1)) / math.sqrt(len(k1)) if len(k1) > 1 else 0.0
    return Divergence(float(k1.mean()), float(k3.mean()), error)
