"""`dmoerm rl`: optimize a small policy against each method and measure the gold reward along the way."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .experiments import command_line, experiment_config, parse_conditions, write_results
from .models import quieten
from .options import ExperimentFolder, JsonFile, Members, Noise, Overrides

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..experiments.policies import PolicySettings

_METHODS = ("general", "ensemble_uwo", "dmoerm")
_NOISY = "noisy=0.25,0.15"


class Algorithm(StrEnum):
    """The trainer."""

    RLOO = "rloo"
    GRPO = "grpo"
    PPO = "ppo"


Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="A method to optimize against, as `dmoerm compare` names it; may be repeated. "
        "Default: general, ensemble_uwo and dmoerm.",
    ),
]
Betas = Annotated[list[float] | None, typer.Option("--beta", help="Weight of the KL penalty; may be repeated.")]
PolicySeeds = Annotated[
    list[int] | None,
    typer.Option("--seed", help="A seed of reward model and policy; may be repeated. Default: 0 and 1."),
]
PromptCount = Annotated[int, typer.Option(min=1, help="Testbed prompts of each task to draw from.")]


def command(
    config: Annotated[
        str, typer.Argument(help="The reward models' settings: `testbed`, or a YAML file with its tasks.")
    ],
    methods: Methods = None,
    betas: Betas = None,
    seeds: PolicySeeds = None,
    noise: Noise = None,
    algorithm: Annotated[Algorithm | None, typer.Option(help="The trainer. Default: rloo.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Batches of samples: one update each, with PPO four. Default: 150.")
    ] = None,
    prompts: PromptCount = 160,
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
    from .tables import policies_table

    results = optimize_policies(
        settings,
        parse_conditions(noise or (_NOISY,)),
        seeds or (0, 1),
        methods or _METHODS,
        betas or (),
        prompts,
        members,
        command=command_line(),
    )
    path = Path(settings.config.output) / "rl.json"
    write_results(results, path, json_file, lambda console: console.print(policies_table(results)))


def _settings(config: str, overrides: Sequence[str], output: Path | None, options: dict[str, Any]) -> PolicySettings:
    """Split the overrides: `policy.…` and `rl.…` set the policy and its optimization, all others the config.

    Args:
        options: settings of the optimization; None leaves one unset. They take precedence over the overrides.
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
