"""`dmoerm rl`: optimise a small policy against each method, and see what becomes of the gold reward."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .experiments import conditions_of, experiment_config, write_found
from .models import quieten
from .options import ExperimentFolder, JsonFile, Members, Noise, Overrides

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..config import Config
    from ..evaluation.experiment_results import PolicyResults
    from ..rl import PolicyConfig, RLConfig, RLPrompt, Trajectory

_METHODS = ("general", "ensemble_uwo", "dmoerm")
_NOISY = "noisy=0.25,0.15"


class Algorithm(StrEnum):
    """TRL's trainer."""

    RLOO = "rloo"
    GRPO = "grpo"


class _Settings(NamedTuple):
    config: Config
    policy: PolicyConfig
    rl: RLConfig


class _Ended(NamedTuple):
    condition: str
    trajectory: Trajectory


def command(
    config: Annotated[
        str, typer.Argument(help="The reward models' settings: `testbed`, or a YAML file with its tasks.")
    ],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="To optimise against, as `dmoerm compare` names them; may be repeated. "
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
    algorithm: Annotated[Algorithm | None, typer.Option(help="Of the optimisation; rloo unless given.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of a run; 150 unless given.")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Testbed prompts of each task to draw from.")] = 160,
    members: Members = 5,
    output: ExperimentFolder = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Optimise a policy against each method's reward, with the gold reward measured along the way.

    --set changes the reward models' settings, the policy (policy.layers=4) and the optimisation
    (rl.learning_rate=1e-4). The same command again goes on where it was stopped.
    """
    from ..rl.optimise import require_trl

    require_trl()
    quieten()
    settings = _settings(config, overrides or (), output, {"algorithm": algorithm and algorithm.value, "steps": steps})
    weights = [settings.rl.model_copy(update={"beta": beta}) for beta in betas or (settings.rl.beta,)]
    conditions = conditions_of(noise or (_NOISY,))
    ended = list(_optimise_all(settings, weights, conditions, seeds or (0, 1), methods or _METHODS, prompts, members))
    from .tables import policies_table, screen

    found = _results(settings, ended)
    lines = write_found(found, Path(settings.config.output) / "rl.json", json_file)
    console = screen()
    console.print(policies_table(found))
    for line in lines:
        console.print(line, soft_wrap=True)


def _settings(config: str, overrides: Sequence[str], output: Path | None, options: dict[str, Any]) -> _Settings:
    """`policy.…` and `rl.…` are the policy's and the optimisation's, over which the options go; others the config's."""
    from ..config import apply_override, validated
    from ..rl import PolicyConfig, RLConfig

    given: dict[str, Any] = {"policy": {}, "rl": {}}
    others = []
    for override in overrides:
        if override.startswith(("policy.", "rl.")):
            apply_override(given, override)
        else:
            others.append(override)
    given["rl"] |= {name: value for name, value in options.items() if value is not None}
    return _Settings(
        experiment_config(config, others, output),
        validated(PolicyConfig, given["policy"], "--set policy"),
        validated(RLConfig, given["rl"], "--set rl"),
    )


def _optimise_all(
    settings: _Settings,
    weights: Sequence[RLConfig],
    conditions: dict[str, tuple[float, float]],
    seeds: Sequence[int],
    methods: Sequence[str],
    prompts: int,
    members: int,
) -> Iterator[_Ended]:
    from ..errors import ConfigError
    from ..experiments.method_suite import RunMethod, open_panel, run_settings
    from ..rl import gold_of, make_policy, optimise
    from ..training.progress import Progress

    folder, progress = Path(settings.config.output), Progress()
    asked = _prompts(settings, seeds, prompts)
    with progress.run(1 + len(conditions) * len(seeds) * len(methods) * len(weights)):
        with progress.step("policy"):
            start = make_policy(settings.policy, folder / "policies")
        for condition, flips in conditions.items():
            for seed in seeds:
                run = run_settings(settings.config, condition, flips, seed)
                panel = open_panel(run, members, progress.console)
                for method in methods:
                    if method not in panel.methods:
                        raise ConfigError(f"--method {method}: use some of {', '.join(panel.methods)}")
                    for one in weights:
                        rl = one.model_copy(update={"seed": seed})
                        place = Path(run.output).with_name("rl") / f"{method}-{rl.algorithm}-beta{rl.beta:g}"
                        reward = RunMethod(panel, method).score_all
                        name = f"{condition}/{method}"
                        yield _Ended(
                            condition,
                            optimise(
                                start,
                                reward,
                                gold_of,
                                asked,
                                rl,
                                place,
                                method=name,
                                depends_on=f"{members} members, {panel.run.config!r}",
                                progress=progress,
                            ),
                        )


def _prompts(settings: _Settings, seeds: Sequence[int], count: int) -> list[RLPrompt]:
    """Prompts that neither the policy was fine-tuned on nor any seed's reward models."""
    from ..config import changed
    from ..data.splits import load_splits
    from ..rl import draw_prompts
    from ..schema import prompt_key

    parts = [load_splits(changed(settings.config, {"seed": seed})).train for seed in seeds]
    known = {prompt_key(group.prompt) for part in parts for group in part}
    drawn = draw_prompts(count, settings.policy.seed, skip=settings.policy.prompts_per_task)
    return [prompt for prompt in drawn if prompt_key(prompt.prompt) not in known]


def _results(settings: _Settings, ended: Sequence[_Ended]) -> PolicyResults:
    from ..evaluation.experiment_results import PolicyResults, PolicyRun
    from ..evaluation.results import versions
    from ..experiments.policies import differences, summarise

    runs = [
        PolicyRun.model_validate(
            {
                "condition": condition,
                "method": found.method.partition("/")[2],
                "beta": found.beta,
                "seed": found.seed,
                "points": [
                    {**point.model_dump(), "proxy": found.scale.normalise(point.proxy)} for point in found.points
                ],
            }
        )
        for condition, found in ended
    ]
    return PolicyResults(
        command=" ".join(["dmoerm", *sys.argv[1:]]),
        config=settings.config.model_dump(mode="json"),
        policy=settings.policy.model_dump(mode="json"),
        settings=settings.rl.model_dump(mode="json"),
        parameters=ended[0].trajectory.parameters,
        versions=versions(),
        runs=tuple(runs),
        summaries=tuple(summarise(runs)),
        paired=differences(runs),
    )
