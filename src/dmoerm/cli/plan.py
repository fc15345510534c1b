"""`dmoerm plan`: time, memory and cost of a config's training and of scoring, before anything runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from .options import JsonFile, Overrides, grouped

if TYPE_CHECKING:
    from rich.table import Table

    from ..config import BackboneConfig
    from ..model.survey import Survey
    from ..planning import Machine, RunPlan, Workload


@dataclass(frozen=True)
class DataOptions:
    """The amount of data."""

    groups: Annotated[int, typer.Option(min=1, help="Prompts of the training part; a pair is a group of two.")] = 10_000
    responses: Annotated[int, typer.Option(min=2, help="Responses per prompt.")] = 2
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 512
    response_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a response.")] = 256
    tasks: Annotated[int, typer.Option(min=1, help="Number of tasks.")] = 5
    capabilities: Annotated[int, typer.Option(min=0, help="Capabilities per task.")] = 5
    scored: Annotated[int, typer.Option(min=0, help="Responses to score with the trained model.")] = 1_000_000


@dataclass(frozen=True)
class MachineOptions:
    """The machine, and measured values that replace its table's."""

    gpus: Annotated[
        str, typer.Option(metavar="NUMBERxKIND", help="Such as 8xH100, H200, B200, A100, L40S, L4, RTX4090, or cpu.")
    ] = "1xH100"
    price: Annotated[float | None, typer.Option(min=0, help="Dollars per hour of one GPU.")] = None
    tflops: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Measured rate of one GPU, 10¹² operations per second. Default: 40 % of its peak."),
    ] = None


@grouped
def command(
    config: Annotated[str, typer.Argument(help="YAML file, or name of a shipped config such as human or fast.")],
    data: DataOptions,
    machine: MachineOptions,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Estimate time, memory and cost of training a config and of scoring, from shapes alone.

    Nothing is read but the config and the backbone's configuration. docs/scale.md has the formulas and how far they
    were off where they were measured; no GPU was measured. With --gpus cpu the rate is that of two cores. A backbone
    that runs by its own forward shares nothing: each response is computed with its prompt.
    """
    from ..config import load_config
    from ..io.paths import write_file
    from ..planning import ESTIMATED_BY_MEASURED, Recipe, Workload, check_shape, make_plan, parse_machine, read_shape
    from .tables import screen

    settings = load_config(config, overrides or ())
    chosen = parse_machine(machine.gpus, price=machine.price, tflops=machine.tflops)
    known = _surveyed(settings.backbone)
    shape, reason = read_shape(settings.backbone.path), known and known.reason
    if known:
        shape = check_shape(settings.backbone.path, shape, known.linear)
    options = {"float32": chosen.kind == "cpu", "packed": reason is None}
    recipe = Recipe.of(settings, shape, data.tasks, data.capabilities, **options)
    workload = Workload(data.groups, data.prompt_tokens, data.response_tokens, data.responses, data.scored)
    plan = make_plan(recipe, workload, chosen)
    console = screen()
    console.print(_table(plan, workload))
    for line in [*_lines(plan, chosen, reason), *(f"does not fit: {problem}" for problem in plan.problems())]:
        console.print(line, soft_wrap=True)
    if json_file is not None:
        document = {"schema": 1, "command": "plan", "config": config, "workload": workload.__dict__, **plan.to_json()}
        document |= {"unpacked_reason": reason, "estimated_by_measured": ESTIMATED_BY_MEASURED}
        write_file(json_file, json.dumps(document, indent=2) + "\n")


def _surveyed(backbone: BackboneConfig) -> Survey | None:
    """Return how a whole backbone runs; None for the shapes that are known without its configuration, which are packed.

    Raises:
        BackboneError: the backbone is refused, or its configuration cannot be read.
    """
    from ..errors import BackboneError
    from ..planning import SHAPES

    if backbone.path in SHAPES:
        return None
    from ..model.survey import survey

    whole = {"num_layers": None, "branch_layer": None, "quantization": "none"}
    result = survey(backbone.model_copy(update=whole))
    if result.runs == "refused":
        raise BackboneError(f"backbone.path: {backbone.path!r} is not supported: {result.reason}; use another backbone")
    return result


def _table(plan: RunPlan, workload: Workload) -> Table:
    from rich.table import Table

    table = Table("work", title=f"Estimate on {plan.machine.count} × {plan.machine.kind}", title_justify="left")
    for column in ("PFLOP", "time", "cost, $", "memory on each, GB"):
        table.add_column(column, justify="right")
    titles = {
        f"train on {workload.groups:,} prompts with {workload.responses} responses": plan.training,
        f"score {workload.scored:,} responses": plan.scoring,
    }
    for title, part in titles.items():
        row = f"{part.flops / 1e15:,.1f}", _duration(part.seconds), f"{part.dollars:,.2f}", f"{part.memory / 1e9:,.1f}"
        table.add_row(title, *row)
    return table


def _lines(plan: RunPlan, machine: Machine, reason: str | None) -> list[str]:
    """Return what the table does not show: sizes, the comparison with a plain model, and the assumptions.

    Args:
        reason: why the backbone runs by its own forward; None: it is packed.
    """
    from ..planning import measured_line

    each = machine.accelerator
    lines = [
        f"model: {plan.model / 1e9:,.1f} GB of memory; cached activations: {plan.cache / 1e9:,.1f} GB of disk",
        f"scoring: {plan.ratio:.2f} times the operations of one plain reward model",
    ]
    if reason:
        lines.insert(
            0,
            f"the backbone runs by its own forward ({reason}): it has no shared trunk, and each response is computed "
            "with its prompt",
        )
    if plan.sharded_memory is not None:
        lines.append(f"training with configs/accelerate/fsdp2.yaml: {plan.sharded_memory / 1e9:,.1f} GB on each")
    source = "measured on two cores" if machine.kind == "cpu" else "assumed; give --tflops with a measured rate"
    lines.append(
        f"assumptions: {each.flops * each.utilization / 1e12:,.2f} TFLOP/s ({source}), "
        f"{each.layer_seconds * 1e3:.2g} ms per layer call, ${each.price:.2f} per hour"
    )
    return [*lines, measured_line(packed=reason is None)]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
