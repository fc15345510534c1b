"""The backbone of a checkpoint that contains only what was trained: its name in config.json, its digest, its weights.

build_model ──name_backbone──▶ config.backbone_source       name, commit, SHA-256 of the weights in use
save    leaves the pretrained parts out, while their weights have that digest (`is_unchanged`)
load    reads them from the backbone (`read_backbone`), and compares the digest (`check_digest`)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from ..errors import BackboneError, CheckpointError
from .backbone import BUNDLED, load_layers
from .configuration import BackboneSource, DMoERMConfig
from .layers import split_layers
from .mixture import Mixture

TRUNK, GENERAL = "trunk.safetensors", "general/branch.safetensors"
States = Mapping[str, Mapping[str, Tensor]]
"""The name of a file of the checkpoint → the state of its part."""

_HINT = "name its backbone with --backbone PATH (in Python backbone=PATH, elsewhere $DMOERM_BACKBONE)"


def name_backbone(model: Mixture, name: str) -> None:
    """Let checkpoints of a model name its backbone, if training leaves a part of it as it is.

    `name` is `backbone.path`, from which the model has its weights.
    """
    if parts := pretrained_parts(model):
        digest = state_digest(*(part.state_dict() for part in parts.values()))
        model.config.backbone_source = _described(name, digest)


def pretrained_parts(model: Mixture) -> dict[str, nn.Module]:
    """Return file name → part, of the parts that training leaves as the backbone has them."""
    parts = {TRUNK: model.trunk, GENERAL: model.general.branch if model.config.shared_branch else None}
    return {name: part for name, part in parts.items() if part is not None}


def is_unchanged(model: Mixture) -> bool:
    """Return whether the pretrained parts have the weights of the named backbone."""
    source = model.config.backbone_source
    states = (part.state_dict() for part in pretrained_parts(model).values())
    return source is not None and state_digest(*states) == source["digest"]


def read_backbone(folder: Path, config: DMoERMConfig, name: str, hub: Mapping[str, Any]) -> States:
    """Return the pretrained parts of a checkpoint's model, with the weights of a backbone.

    Args:
        folder: the checkpoint's.
        config: names the backbone; if that was a folder, it names `name` from now on, where that folder may have moved.
        name: of the backbone in use, as `backbone.path`.
        hub: see `checkpoint.download`.

    Raises:
        CheckpointError: there is no such backbone, or it has fewer layers.
    """
    source: Any = config.backbone_source
    options = {option: hub[option] for option in ("token", "cache_dir", "local_files_only") if option in hub}
    if name == source["name"] and source["revision"]:
        options["revision"] = source["revision"]
    layers, dtype = config.backbone["num_hidden_layers"], getattr(torch, config.backbone["dtype"])
    try:
        trunk, branch = split_layers(load_layers(name, layers, dtype, **options), config.branch_layer)
    except BackboneError as error:
        raise CheckpointError(f"{folder}: {error}; {_HINT}") from None
    if os.path.isabs(source["name"]):
        config.backbone_source = _described(name, source["digest"])
    parts = {TRUNK: trunk, GENERAL: branch if config.shared_branch else None}
    return {file: part.state_dict() for file, part in parts.items() if part is not None}


def check_digest(folder: Path, name: str, expected: str, pretrained: States) -> None:
    """Raise `CheckpointError` if the backbone of that name has other weights than in training."""
    if (actual := state_digest(*pretrained.values())) != expected:
        digests = f"digest {expected[:16]}, not {actual[:16]}"
        raise CheckpointError(
            f"{folder}: was trained on a backbone with other weights than {name!r} ({digests}); {_HINT}"
        )


def state_digest(*states: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all tensors with their names, dtypes and shapes; threads share the work."""

    def line(named: tuple[str, Tensor]) -> str:
        name, tensor = named
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        return f"{hashlib.sha256(content).hexdigest()} {name} {tensor.dtype} {tuple(tensor.shape)}\n"

    with ThreadPoolExecutor() as pool:
        lines = pool.map(line, (named for state in states for named in sorted(state.items())))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def _described(name: str, digest: str) -> dict[str, Any]:
    """Return the fields of a `BackboneSource`: a folder with its absolute path, a name on the hub with its commit."""
    revision = None
    if name != BUNDLED and os.path.isdir(name):
        name = os.path.abspath(name)
    elif isinstance(file := try_to_load_from_cache(name, "config.json"), str):
        revision = Path(file).parent.name
    return BackboneSource(name=name, revision=revision, digest=digest).model_dump()
