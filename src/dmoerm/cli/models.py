"""Load a model for a command; `dmoerm models check`: how a backbone would run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import BackboneConfig, apply_override, validated
from ..errors import ConfigError
from ..io.paths import model_folder
from .options import Overrides, lazily

if TYPE_CHECKING:
    from .. import training
    from ..model import dmoerm, loading, memory, tensor_parallel
else:
    training, dmoerm, loading = lazily("training", "model.dmoerm", "model.loading")
    memory, tensor_parallel = lazily("model.memory", "model.tensor_parallel")


def prepare_libraries(deterministic: bool = False) -> None:
    """Turn off the messages and progress bars of transformers; set up kernels and memory, see `prepare_process`."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    loading.prepare_process(deterministic)


def load_model(
    path: str,
    dtype: str | None = None,
    deterministic: bool = False,
    quantization: str = "none",
    divide: bool = False,
    device: str | None = None,
    backbone: str | None = None,
) -> dmoerm.DMoERM:
    """Load the model of a run's folder, a model's folder, or a hub name, without the messages of the libraries.

    Args:
        path: the folder or the name.
        dtype: precision of trunk and branches, such as float32; None: as saved.
        deterministic: prepare CUDA for deterministic matrix products.
        quantization: `8bit` or `4bit` to hold frozen layers in 8 or 4 bits.
        divide: divide the model over the launcher's processes, if there are several. Only process 0 returns; the others
            run its passes until it ends, and then end too.
        device: such as `cuda:1`; None: the accelerator if there is one.
        backbone: see `DMoERM.from_pretrained`.

    Raises:
        CheckpointError: the model or its backbone does not exist.
    """
    prepare_libraries(deterministic)
    folder = model_folder(path)
    if not divide or processes() == 1:
        options = {"dtype": dtype, "device_map": device or "auto", "quantization": quantization, "backbone": backbone}
        return dmoerm.DMoERM.from_pretrained(folder, **options)
    if quantization != "none":
        raise ConfigError("several processes divide a model; leave out --quantization, or start one")
    current = training.device()  # starts the communication
    model = dmoerm.DMoERM.from_pretrained(folder, dtype=dtype, backbone=backbone)
    tensor_parallel.parallelize(model, current)
    if training.rank():
        tensor_parallel.follow(model)
        raise typer.Exit
    tensor_parallel.lead(model)
    return model


def follows() -> bool:
    """Return whether this process only runs the passes of another one; see `load_model`."""
    return processes() > 1 and os.environ.get("RANK", "0") != "0"


def processes() -> int:
    """Return how many processes the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


# --- models check --------------------------------------------------------------------------------------------------

app = typer.Typer(no_args_is_help=True, help="Inspect backbones.")


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(help="A folder or hub name; its config.json is enough.")],
    tasks: Annotated[int, typer.Option(min=1, help="Number of tasks that the memory is for.")] = 5,
    overrides: Overrides = None,
) -> None:
    """Say how a backbone runs (packed, fallback, or refused and why), its LoRA targets, and its memory.

    Only the configuration is read; --set backbone.dtype=bfloat16 and the like say how it would be used. Exits with code
    1 if the backbone is refused.
    """
    prepare_libraries()
    settings: dict[str, Any] = {"backbone": {"path": name}}
    for override in overrides or ():
        apply_override(settings, override)
    if other := settings.keys() - {"backbone"}:
        raise ConfigError(f"--set {other.pop()}: only settings of backbone matter here; leave the setting out")
    backbone = validated(BackboneConfig, settings["backbone"], "--set backbone")
    result = memory.survey(backbone, tasks)
    typer.echo(
        "\n".join(f"{field:<14}{value}" for field, value in _lines(result, tasks, backbone.quantization).items())
    )
    if result.runs == "refused":
        raise typer.Exit(1)


_RUNS = {
    "packed": "packed: the fast path, with prompts shared by their responses",
    "fallback": "fallback: by its own forward, one padded row per response",
    "refused": "refused",
}


def _lines(result: memory.Survey, tasks: int, quantization: str) -> dict[str, str]:
    """Return the report: field → text."""
    lines = {
        "type": result.kind + (f", the text model of {result.composite}" if result.composite else ""),
        "runs": _RUNS[result.runs] + (f" ({result.reason})" if result.reason else ""),
    }
    if result.runs == "refused":
        return lines
    lines |= {
        "layers": f"{result.branch_layer} in the trunk, {result.layers - result.branch_layer} in each branch",
        "head": "a reward model's: the general model starts from it" if result.has_head else "none",
        "LoRA targets": ", ".join(result.targets) or "none: experts are heads (phase2.lora.rank: 0)",
        "parameters": f"{result.trunk / 1e6:.1f} M in the trunk, {result.branch / 1e6:.1f} M in each branch",
    }
    sizes = {name: f"{size / 1e9:.2f} GB" for name, size in result.memory.items()}
    activations = "unknown for this family"
    if "pass" in sizes:
        activations = (
            f"{sizes['pass']} in a pass of 8192 tokens; {sizes['kept']} for a branch's backward pass, "
            f"{sizes['kept_checkpointing']} with gradient_checkpointing"
        )
    if quantization != "none":
        return lines | {
            "weights": f"{sizes['frozen']} with one branch (base: frozen), its linear layers in {quantization} "
            f"and all else in {result.dtype}",
            "training": f"base: full and base: lora are refused with {quantization}",
            "activations": activations,
            "sum": f"score {sizes['score_frozen']}; train {sizes['train_heads']} (heads alone); both base: frozen",
        }
    return lines | {
        "weights": f"{sizes['frozen']} in {result.dtype} with one branch (base: frozen); "
        f"{sizes['own']} with a float32 branch for each of {tasks} tasks and the general model",
        "training": f"{sizes['training']} more for one fully trained branch (base: full)",
        "activations": activations,
        "sum": f"score {sizes['score_frozen']} (base: frozen) or {sizes['score_own']}; "
        f"train {sizes['train_heads']} (heads alone) or {sizes['train_full']} (base: full; "
        f"{sizes['train_full_checkpointing']} with gradient_checkpointing)",
    }
