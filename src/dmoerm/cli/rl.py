"""`dmoerm rl`: optimise a small policy against reward models, and see what becomes of the gold reward."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel

from .models import load_model, quieten
from .options import JsonFile, Overrides

if TYPE_CHECKING:
    from ..model import DMoERM
    from ..rl import PolicyConfig, RLConfig, Trajectory
    from ..schema import Query

Reward = Callable[[Sequence["Query"]], list[list[float]]]
Settings = TypeVar("Settings", bound=BaseModel)
_BATCH_TOKENS = 8192


class Algorithm(StrEnum):
    """TRL's trainer."""

    RLOO = "rloo"
    GRPO = "grpo"


def command(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Runs' or models' folders.")],
    method: Annotated[
        list[str] | None, typer.Option(help="Which of their reward models; may be repeated. All of them by default.")
    ] = None,
    beta: Annotated[list[float] | None, typer.Option(help="Weight of the KL penalty; may be repeated. [0]")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, with seeds 0, 1, … (from rl.seed on).")] = 1,
    algorithm: Annotated[Algorithm | None, typer.Option(help="Of the optimisation. [rloo]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of a run. [150]")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Testbed prompts of each task, held-out ones among them.")] = 160,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where policies and runs are kept.")] = Path("runs/rl"),
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Optimise a policy against each reward model, with the gold reward measured along the way.

    --set changes the policy (policy.layers=4) and the optimisation (rl.learning_rate=1e-4). The same command again goes
    on where it was stopped.
    """
    from ..rl.optimise import require_trl

    require_trl()
    quieten()
    policy, settings = _settings(overrides or (), {"algorithm": algorithm and algorithm.value, "steps": steps})
    every = [(b, settings.seed + i) for b in beta or (settings.beta,) for i in range(seeds)]
    runs = [settings.model_copy(update={"beta": b, "seed": s}) for b, s in every]
    found = _optimise_all(_methods(models, method), policy, runs, prompts, output)
    from .tables import screen, trajectories_table

    console = screen()
    console.print(trajectories_table(found))
    console.print(f"trajectories: {output}", soft_wrap=True)
    if json_file is not None:
        from ..paths import write_file

        rows = [one.model_dump(mode="json", by_alias=True) for one in found]
        write_file(json_file, json.dumps({"schema": 1, "trajectories": rows}, indent=1) + "\n")


def open_methods(path: str) -> dict[str, Reward]:
    """Name → reward of every reward model in a run's or a model's folder; a query's own task is not looked at."""
    model = load_model(path)
    return {"dmoerm": lambda queries: _rewards(model, queries), "general": lambda queries: _general(model, queries)}


def _rewards(model: DMoERM, queries: Sequence[Query]) -> list[list[float]]:
    """End to end: the router decides."""
    untold = [query.model_copy(update={"task": None}) for query in queries]
    return [[one.reward for one in scores] for scores in model.score_queries(untold, _BATCH_TOKENS)]


def _general(model: DMoERM, queries: Sequence[Query]) -> list[list[float]]:
    """The single model of all tasks that phase 0 trained."""
    import torch

    from ..model.batching import pack_ids

    encoded = [model.encoder.encode(query) for query in queries]
    found: dict[int, list[float]] = {}
    with torch.inference_mode():
        for rows in model.passes(encoded, _BATCH_TOKENS):
            hidden = model.hidden(pack_ids([encoded[i] for i in rows]).to(model.device))
            scores = model.general.head(model.general.embed(hidden)).tolist()
            for owner, score in zip(hidden.layout.owner, scores, strict=True):
                found.setdefault(rows[owner], []).append(score)
    return [found[i] for i in range(len(queries))]


def _methods(models: Sequence[str], wanted: Sequence[str] | None) -> dict[str, Reward]:
    """Label → reward; the label names the folder too where there are several."""
    from ..errors import ConfigError

    found: dict[str, Reward] = {}
    for path in models:
        methods = open_methods(path)
        for name in wanted or methods:
            if name not in methods:
                raise ConfigError(f"--method {name}: {path} has none of that name; use one of {', '.join(methods)}")
            found[name if len(models) == 1 else f"{Path(path).name}/{name}"] = methods[name]
    return found


def _settings(overrides: Sequence[str], options: dict[str, Any]) -> tuple[PolicyConfig, RLConfig]:
    """From `policy.…` and `rl.…` overrides, over which the options go."""
    from ..config import apply_override
    from ..errors import ConfigError
    from ..rl import PolicyConfig, RLConfig

    given: dict[str, Any] = {"policy": {}, "rl": {}}
    for override in overrides:
        apply_override(given, override)
    if unknown := given.keys() - {"policy", "rl"}:
        raise ConfigError(f"--set {min(unknown)}: no such settings; use policy.… or rl.…")
    given["rl"] |= {name: value for name, value in options.items() if value is not None}
    return _validated("policy", PolicyConfig, given), _validated("rl", RLConfig, given)


def _validated(name: str, kind: type[Settings], given: dict[str, Any]) -> Settings:
    from pydantic import ValidationError

    from ..errors import ConfigError, shorten

    try:
        return kind.model_validate(given[name])
    except ValidationError as error:
        detail = error.errors()[0]
        field = ".".join(str(part) for part in (name, *detail["loc"]))
        raise ConfigError(f"--set {field}: {detail['msg']} (got {shorten(detail['input'])})") from None


def _optimise_all(
    methods: dict[str, Reward], policy: PolicyConfig, runs: Sequence[RLConfig], prompts: int, output: Path
) -> list[Trajectory]:
    from ..rl import draw_prompts, gold_of, make_policy, optimise
    from ..training.progress import Progress

    progress = Progress()
    asked = draw_prompts(prompts, policy.seed, skip=policy.prompts_per_task)  # those it was not fine-tuned on
    with progress.run(1 + len(methods) * len(runs)):
        with progress.step("policy"):
            start = make_policy(policy, output / "policies")
        return [
            optimise(
                start,
                reward,
                gold_of,
                asked,
                settings,
                output / name.replace("/", "-") / f"{settings.algorithm}-beta{settings.beta:g}-seed{settings.seed}",
                method=name,
                progress=progress,
            )
            for name, reward in methods.items()
            for settings in runs
        ]
