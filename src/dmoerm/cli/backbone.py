"""`dmoerm models check`: how a backbone would run."""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .models import quieten

if TYPE_CHECKING:
    from ..model.survey import Survey


class Dtype(StrEnum):
    """The values of backbone.dtype."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


app = typer.Typer(no_args_is_help=True, help="Inspect backbones.")
_RUNS = {
    "packed": "packed: the fast path, with prompts shared by their responses",
    "fallback": "fallback: by its own forward, one padded row per response",
    "refused": "refused",
}


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(help="A folder or hub name; its config.json is enough.")],
    tasks: Annotated[int, typer.Option(min=1, help="Number of tasks that the memory is for.")] = 5,
    layers: Annotated[int | None, typer.Option(min=1, help="As backbone.num_layers.")] = None,
    branch_layer: Annotated[int | None, typer.Option(min=0, help="As backbone.branch_layer.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="As backbone.dtype.")] = Dtype.auto,
    quantization: Annotated[
        Literal["none", "8bit", "4bit"], typer.Option(help="As backbone.quantization; needs base: frozen.")
    ] = "none",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how a backbone runs (packed, fallback, or refused and why), its LoRA targets, and its memory.

    Only the configuration is read. Exits with code 1 if the backbone is refused.
    """
    from ..config import BackboneConfig
    from ..model.survey import survey

    quieten()
    settings = BackboneConfig(
        path=name, num_layers=layers, branch_layer=branch_layer, dtype=dtype.value, quantization=quantization
    )
    result = survey(settings)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(result) | {"memory": result.memory(tasks)}))
    else:
        typer.echo("\n".join(f"{field:<14}{value}" for field, value in _lines(result, tasks).items()))
    if result.runs == "refused":
        raise typer.Exit(1)


def _lines(result: Survey, tasks: int) -> dict[str, str]:
    """Return the report: field → text."""
    reason = f" ({result.reason})" if result.reason else ""
    lines = {
        "type": result.kind + (f", the text model of {result.composite}" if result.composite else ""),
        "runs": _RUNS[result.runs] + reason,
    }
    if result.runs == "refused":
        return lines
    return lines | {
        "layers": f"{result.branch_layer} in the trunk, {result.layers - result.branch_layer} in each branch",
        "head": "a reward model's: the general model starts from it" if result.has_head else "none",
        "LoRA targets": ", ".join(result.targets) or "none: experts are heads (phase2.lora.rank: 0)",
        "parameters": f"{result.trunk / 1e6:.1f} M in the trunk, {result.branch / 1e6:.1f} M in each branch",
        **_memory_lines(result, tasks),
    }


def _memory_lines(result: Survey, tasks: int) -> dict[str, str]:
    from ..model.memory import PASS_TOKENS

    memory = {name: f"{size / 1e9:.2f} GB" for name, size in result.memory(tasks).items()}
    activations = "unknown for this family"
    if "pass" in memory:
        activations = (
            f"{memory['pass']} in a pass of {PASS_TOKENS} tokens; {memory['kept']} for a branch's backward pass, "
            f"{memory['kept_checkpointing']} with gradient_checkpointing"
        )
    if result.quantization != "none":
        return {
            "weights": f"{memory['frozen']} with one branch (base: frozen), its linear layers in {result.quantization} "
            f"and all else in {result.dtype}",
            "training": f"base: full and base: lora are refused with {result.quantization}",
            "activations": activations,
            "sum": f"score {memory['score_frozen']}; train {memory['train_heads']} (heads alone); both base: frozen",
        }
    return {
        "weights": f"{memory['frozen']} in {result.dtype} with one branch (base: frozen); "
        f"{memory['own']} with a float32 branch for each of {tasks} tasks and the general model",
        "training": f"{memory['training']} more for one fully trained branch (base: full)",
        "activations": activations,
        "sum": f"score {memory['score_frozen']} (base: frozen) or {memory['score_own']}; "
        f"train {memory['train_heads']} (heads alone) or {memory['train_full']} (base: full; "
        f"{memory['train_full_checkpointing']} with gradient_checkpointing)",
    }
