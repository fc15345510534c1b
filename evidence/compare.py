"""Compare DMoERM with all baselines and ablations, under clean and changed training data.

    python -m evidence.compare human --seed 10 --noise clean=0,0 --noise noisy=0.25,0.15 --ablation shuffled
    python -m evidence.compare testbed --prompts 48 --condition few=overall_fraction=0.1 --method per_task

Each condition and seed has a folder of its own below the output, in which finished training steps are not repeated;
`evidence.bon` and `evidence.policies` use the same runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from dmoerm.cli.tables import screen
from dmoerm.config import Config, parse_override
from dmoerm.errors import ConfigError
from dmoerm.evaluation.comparison import SeedResult, descriptions, measure_seed, summarize
from dmoerm.evaluation.methods import Method, choose_methods, registered
from dmoerm.evaluation.results import Document, MethodResults, versions
from dmoerm.io.paths import write_file
from evidence.conditions import Changes, condition_run, experiment_config
from evidence.methods import ablations, ensembles
from evidence.tables import tables


class Condition(MethodResults):
    """The methods under one condition, such as a share of reversed training labels."""

    settings: dict[str, Any]
    """The changes that distinguish the runs of this condition; see conditions.py."""


class Experiment(Document):
    """The results of `python -m evidence.compare`."""

    kind: Literal["comparison"] = "comparison"
    command: str
    config: dict[str, Any]
    seeds: tuple[int, ...]
    members: int
    """Models in an ensemble."""
    versions: dict[str, str]
    methods: dict[str, str]
    """Method → its description."""
    conditions: dict[str, Condition]
    derived_tasks: tuple[str, ...]
    gold_tasks: tuple[str, ...]


def options_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of the experiments that train methods under several conditions."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, the name of a shipped config, or testbed")
    parser.add_argument("--seed", type=int, action="append", help="may be repeated; default: 0, 1 and 2")
    parser.add_argument(
        "--noise", action="append", default=[], metavar="NAME=SCORES,CAPABILITIES",
        help="a condition: shares of reversed pairs; default: clean=0,0 and noisy=0.25,0.15",
    )  # fmt: skip
    parser.add_argument(
        "--condition", action="append", default=[], metavar="NAME=CHANGE=VALUE",
        help="a condition that changes the data (conditions.py) or a setting; may be repeated for one condition",
    )  # fmt: skip
    parser.add_argument("--method", action="append", default=[], help="besides dmoerm; default: all but ablations")
    parser.add_argument("--ablation", action="append", default=[], help="a variant of dmoerm; all: every one")
    parser.add_argument("--members", type=int, default=5, help="models in an ensemble")
    parser.add_argument("--prompts", type=int, default=96, help="testbed prompts per task")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change a setting")
    parser.add_argument("--output", type=Path, help="default: the config's output plus -compare")
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options; `methods`, `conditions` and `config` are made of them."""
    options = parser.parse_args(arguments)
    ensembles.SIZE = options.members
    names = list(ablations.NAMES) if options.ablation == ["all"] else options.ablation
    chosen = options.method or [name for name, method in registered().items() if method.default]
    options.chosen = choose_methods([*chosen, *names])
    options.conditions = conditions_of(options.noise, options.condition)
    options.config = experiment_config(options.config, options.set, options.output)
    options.seeds = options.seed or [0, 1, 2]
    return options


def conditions_of(noise: Sequence[str], others: Sequence[str] = ()) -> dict[str, Changes]:
    """Parse `--noise` and `--condition` to name → changes; clean and noisy unless some are given."""
    if not noise and not others:
        noise = ("clean=0,0", "noisy=0.25,0.15")
    conditions: dict[str, dict[str, object]] = {}
    for text in noise:
        name, _, shares = text.partition("=")
        try:
            scores, capabilities = map(float, shares.split(","))
        except ValueError:
            raise ConfigError(f"--noise {text}: write it as NAME=0.25,0.15") from None
        conditions[name] = {"flip_scores": scores, "flip_capabilities": capabilities}
    for text in others:
        name, _, override = text.partition("=")
        if not name or "=" not in override:
            raise ConfigError(f"--condition {text}: write it as NAME=overall_fraction=0.1")
        change, value = parse_override(override, f"--condition {text}")
        conditions.setdefault(name, {})[change] = value
    return dict(conditions)


def command_line(module: str, arguments: Sequence[str] | None) -> str:
    """Return the command for a results file."""
    return " ".join(["python", "-m", f"evidence.{module}", *(sys.argv[1:] if arguments is None else arguments)])


def compare_conditions(
    config: Config,
    seeds: Sequence[int],
    conditions: dict[str, Changes],
    methods: Sequence[Method],
    prompts: int = 96,
    command: str = "compare",
    console: Console | None = None,
) -> Experiment:
    """Train and measure what is missing under `config.output`: every method under every condition and seed."""
    console = console or Console(stderr=True)
    runs: dict[str, list[SeedResult]] = {}
    for name, changes in conditions.items():
        for seed in seeds:
            console.print(f"{name}, seed {seed}", style="bold", highlight=False, markup=False)
            run = condition_run(config, name, changes, seed, prompts)
            runs.setdefault(name, []).append(measure_seed(run, methods, console))
    fields = {name: summarize(seeds, results) for name, results in runs.items()}
    every = [result for results in runs.values() for result in results]
    first = next(iter(fields.values()))
    return Experiment(
        command=command,
        config=config.model_dump(mode="json"),
        seeds=tuple(seeds),
        members=ensembles.SIZE,
        versions=versions(),
        methods=descriptions(methods, every),
        conditions={n: Condition.model_validate({**f, "settings": dict(conditions[n])}) for n, f in fields.items()},
        derived_tasks=first["derived_tasks"],
        gold_tasks=first["gold_tasks"],
    )


def write_results(results: Document, path: Path) -> None:
    """Write the results file and print its tables."""
    write_file(path, results.to_json())
    console = screen()
    console.print("\n".join(tables(json.loads(results.to_json()))), markup=False, highlight=False, soft_wrap=True)
    console.print(f"results: {path}", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    options = parsed(options_parser(__doc__), arguments)
    command = command_line("compare", arguments)
    experiment = compare_conditions(
        options.config, options.seeds, options.conditions, options.chosen, options.prompts, command
    )
    write_results(experiment, Path(options.config.output) / "results.json")


if __name__ == "__main__":
    main()
