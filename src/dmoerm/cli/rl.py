"""`dmoerm rl`: optimize a small policy against each method, and measure the gold reward along the way."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .experiments import conditions_of, experiment_config, write_results
from .models import quieten
from .options import ExperimentFolder, JsonFile, Members, Noise, Overrides

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..experiments.policies import PolicySettings

_METHODS = ("general", "ensemble_uwo", "dmoerm")
_NOISY = "noisy=0.25,0.15"


class Algorithm(StrEnum):
    """TRL's trainer."""

    RLOO = "rloo"
    GRPO = "grpo"


def command(
    config: Annotated[
        str, typer.Argument(help="The reward models' settings: `testbed`, or a YAML file with its tasks.")
    ],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="A method to optimize against, as `dmoerm compare` names it; may be repeated. "
            "general, ensemble_uwo and dmoerm unless given.",
        ),
    ] = None,
    betas: Annotated[
        list[float] | None, typer.Option("--beta", help="Weight of the KL penalty; may be repeated.")
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", help="Of reward model and policy; may be repeated. 0 and 1 unless given."),
    ] = None,
    noise: Noise = None,
    algorithm: Annotated[Algorithm | None, typer.Option(help="The trainer; rloo unless given.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of a run; 150 unless given.")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Testbed prompts of each task to draw from.")] = 160,
    members: Members = 5,
    output: ExperimentFolder = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Optimize a policy against each method's reward and measure the gold reward along the way.

    --set changes the reward models' settings, the policy (policy.layers=4) and the optimization
    (rl.learning_rate=1e-4). Run again, the same command resumes where it stopped.
    """
    from ..rl.optimize import require_trl

    require_trl()
    quieten()
    settings = _settings(config, overrides or (), output, {"algorithm": algorithm and algorithm.value, "steps": steps})
    from ..experiments.policies import optimize_policies
    from .tables import policies_table, screen

    results = optimize_policies(
        settings,
        conditions_of(noise or (_NOISY,)),
        seeds or (0, 1),
        methods or _METHODS,
        betas or (),
        prompts,
        members,
        command=" ".join(["dmoerm", *sys.argv[1:]]),
    )
    lines = write_results(results, Path(settings.config.output) / "rl.json", json_file)
    console = screen()
    console.print(policies_table(results))
    for line in lines:
        console.print(line, soft_wrap=True)


def _settings(config: str, overrides: Sequence[str], output: Path | None, options: dict[str, Any]) -> PolicySettings:
    """Split the overrides: `policy.…` and `rl.…` set the policy and its optimization, all others the config.

    Args:
        options: of the optimization; None is not set. They take precedence over the overrides.
    """
    from ..config import apply_override, validated
    from ..experiments.policies import PolicySettings
    from ..rl import PolicyConfig, RLConfig

    given: dict[str, Any] = {"policy": {}, "rl": {}}
    others = []
    for override in overrides:
        if override.startswith(("policy.", "rl.")):
            apply_override(given, override)
        else:
            others.append(override)
    given["rl"] |= {name: value for name, value in options.items() if value is not None}
    return PolicySettings(
        experiment_config(config, others, output),
        validated(PolicyConfig, given["policy"], "--set policy"),
        validated(RLConfig, given["rl"], "--set rl"),
    )
