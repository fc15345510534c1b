"""A reward as a standard sequence classifier of transformers, which loads and runs without this package.

    reward = weight · z + bias          z: the state of the text's last token after trunk and branch

Normalizers, heads, aggregator and calibration are folded into `weight`, the classifier's layer `score`. That layer has
no bias, so the logit is the reward without the constant `bias`, which cancels in every difference of rewards; the
folder's config.json has it as `reward_bias`. The folder's chat template writes a text as `Encoder` encodes it.

Shapes: d hidden width, s scores of the aggregator.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from ..chat.template import PLAIN_TEMPLATE, on_a_fixed_day
from ..config import EncodingConfig
from ..errors import CheckpointError, ConfigError
from ..io.paths import complete_folder
from ..schema import Message, Query, messages_of, stripped
from .backbone import load_tokenizer
from .layers import join
from .mixture import Mixture
from .packing import pack_ids
from .router import Choice

if TYPE_CHECKING:
    from .dmoerm import DMoERM


class PlainCheck(NamedTuple):
    """How far the written classifier is from the model."""

    texts: int  # the number of compared texts
    same_tokens: int  # how many of them the folder's tokenizer and chat template encode as the model does
    error: float  # the largest absolute difference of logit + bias and reward among those; nan if there are none
    other_error: float  # among the other texts


def nonlinear_reason(model: Mixture, task: str | None) -> str | None:
    """Return why a reward is not linear in the last token's state of one stack of layers; None if it is."""
    if (pooling := EncodingConfig(**model.config.encoding).pooling) != "last":
        return f"encoding.pooling is {pooling}, so that its heads read the mean over the response's tokens"
    if task is None:
        return None
    task_model = model.task_model(task)
    if (linear := task_model.aggregator.linear) is None or task_model.aggregator.mlp is not None:
        return "its aggregator is not linear (phase3.inputs is not scores)"
    read = linear.weight * linear.read
    if task_model.experts.branch is not None and bool(read[: len(task_model.experts)].any()):
        return "its experts have LoRA, so that each reads states of its own"
    if not model.config.shared_branch and task_model.reads_general and bool(read[len(task_model.experts) + 1]):
        return "its aggregator reads the general model, which has another branch"
    return None


@torch.no_grad()
def _folded_reward(model: Mixture, task: str | None) -> tuple[Tensor, Tensor]:
    """Return weight (d,) and bias () of the reward of a task, or of the general model for None, in float64.

    Raises:
        ConfigError: the reward is not linear in the last token's state; the message says why.
    """

    def exact(tensor: Tensor) -> Tensor:
        return tensor.double().cpu()

    def folded(head: Any) -> tuple[Tensor, Tensor]:
        weight = exact(head.score.weight[0]) / exact(head.normalizer.scale)
        return weight, -(weight @ exact(head.normalizer.mean))

    if reason := nonlinear_reason(model, task):
        hint = "serve the model itself, with dmoerm serve"
        raise ConfigError(f"--plain: a standard classifier cannot express this reward exactly: {reason}; {hint}")
    if task is None:
        weight, bias = folded(model.general.head)
    else:
        task_model = model.task_model(task)
        linear: Any = task_model.aggregator.linear
        base = {"per_task": task_model.base.head, "general": model.general.head, "all_labels": task_model.all_labels}
        heads = [*task_model.experts.heads, *(base[name] for name in task_model.aggregator.base_names)]
        weights, biases = map(torch.stack, zip(*map(folded, heads), strict=True))  # (s, d), (s,)
        shares = exact(linear.weight * linear.read) / exact(linear.normalizer.scale)  # (s,)
        weight, bias = weights.T @ shares, (biases - exact(linear.normalizer.mean)) @ shares
    calibration = model.calibration(task)
    scale = exact(calibration.scale)
    return weight / scale, (bias - exact(calibration.center)) / scale


def export_classifier(model: Mixture, task: str | None, target: Path, dtype: torch.dtype | None = None) -> Any:
    """Write the reward of a task, or of the general model for None, as a standard classifier; return its configuration.

    The folder is written completely or not at all.

    Args:
        dtype: precision of all weights; default: the layers' precision, or float32 if they have several.

    Raises:
        ConfigError: the reward is not linear (see `nonlinear_reason`), or transformers has no classifier of this family
            with one linear layer on the last token's state.
        CheckpointError: the folder cannot be written.
    """
    weight, bias = _folded_reward(model, task)
    scorer = model.general if task is None else model.task_model(task).base
    state = join(model.trunk, scorer.branch).state_dict()  # pyright: ignore[reportArgumentType]
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    saved = dtype or (dtypes.pop() if len(dtypes) == 1 else torch.float32)
    tokenizer = _tokenizer(model)
    classifier = _empty_classifier(model, tokenizer.pad_token_id, saved)
    state = {name: t.cpu().to(saved if t.is_floating_point() else t.dtype) for name, t in state.items()}
    classifier.base_model.load_state_dict(state, assign=True)
    classifier.score.weight = nn.Parameter(weight[None].to(saved), requires_grad=False)
    classifier.config.update({"reward_bias": float(bias), "reward_task": task})
    classifier.config.reward_temperature = float(model.calibration(task).temperature)
    try:
        with complete_folder(target) as folder:
            classifier.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except OSError as error:
        raise CheckpointError(f"{target}: the classifier cannot be written: {error}") from error
    return classifier.config


def _empty_classifier(model: Mixture, pad_token_id: int, dtype: torch.dtype) -> Any:
    config: Any = model.config.backbone_config
    config.num_labels, config.problem_type, config.dtype = 1, "regression", dtype
    config.id2label, config.label2id = model.config.id2label, model.config.label2id
    config.pad_token_id = pad_token_id
    with contextlib.suppress(ValueError), torch.device("meta"):  # the family may have none
        classifier: Any = AutoModelForSequenceClassification.from_config(config)
        if isinstance(score := getattr(classifier, "score", None), nn.Linear) and score.bias is None:
            return classifier
    raise ConfigError(
        f"--plain: transformers has no classifier of type {config.model_type!r} that is one linear layer on the "
        "last token's state; serve the model with `dmoerm serve`"
    )


def _tokenizer(model: Mixture) -> Any:
    """Return the tokenizer with a template that ends at the end of the turn, and a padding token that ends no text.

    A classifier reads the last token that is not the padding token, which is often the end-of-turn token.
    """
    tokenizer: Any = copy.deepcopy(model.tokenizer)
    settings = model.encoder.config
    begin = "{% set add_generation_prompt = add_generation_prompt and messages[-1]['role'] != 'assistant' %}"
    if settings.system:
        system = json.dumps([{"role": "system", "content": stripped(settings.system)}], ensure_ascii=False)
        begin += f"{{% if messages[0]['role'] != 'system' %}}{{% set messages = {system} + messages %}}{{% endif %}}"
    template: Any = tokenizer.get_chat_template() if settings.template == "chat" else PLAIN_TEMPLATE
    end = "{{ rendered if add_generation_prompt else rendered.rstrip() }}"
    tokenizer.chat_template = f"{begin}{{% set rendered %}}{on_a_fixed_day(template)}{{% endset %}}{end}"
    last = model.encoder.empty_response[-1]
    if tokenizer.pad_token_id == last:
        others = [i for i in (*tokenizer.all_special_ids, *range(len(tokenizer))) if i != last]
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(others[0])
    return tokenizer


@torch.inference_mode()
def check_classifier(model: DMoERM, task: str | None, folder: Path, queries: Sequence[Query]) -> PlainCheck:
    """Load a written classifier with transformers alone, and compare its logits with the model's rewards."""
    classifier: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval().to(model.device)
    tokenizer: Any = load_tokenizer(folder)
    encoded = [model.encoder.encode(query) for query in queries]
    errors: dict[bool, list[float]] = {True: [], False: []}
    for indices in model.passes(encoded):
        hidden = model.hidden(pack_ids([encoded[i] for i in indices]).to(model.device))
        rewards = model.outputs(hidden, [Choice.of(task)] * len(hidden.packing.prompts)).reward.tolist()
        texts = [(i, n) for i in indices for n in range(len(queries[i].responses))]
        for (i, n), reward in zip(texts, rewards, strict=True):
            response = Message(role="assistant", content=queries[i].responses[n])
            messages = [*messages_of(queries[i].prompt), response]
            rendered = tokenizer.apply_chat_template([message.model_dump() for message in messages], tokenize=False)
            inputs = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
            logit = float(classifier(input_ids=inputs).logits)
            same = inputs[0].tolist() == [*encoded[i].prompt, *encoded[i].responses[n]]
            errors[same].append(abs(logit + classifier.config.reward_bias - reward))
    largest = {same: max(part, default=float("nan")) for same, part in errors.items()}
    return PlainCheck(sum(map(len, errors.values())), len(errors[True]), largest[True], largest[False])
