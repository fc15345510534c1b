"""`dmoerm bon`: what the best of n by each method's reward is worth to people, or to a gold reward."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .experiments import conditions_of, engine_of, experiment_config, write_found
from .models import quieten
from .options import Engine, ExperimentFolder, JsonFile, Members, Noise, Overrides, Seeds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..config import Config
    from ..experiments.method_suite import Scoring
    from ..experiments.samples import Samples


def command(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped config such as human or demo.")],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            help="testbed: its generator and gold reward; graded: held-out groups that people graded; a file; "
            "policy:PATH: a causal language model's answers to testbed prompts.",
        ),
    ] = "testbed",
    samples: Annotated[
        int, typer.Option(min=2, help="Samples a prompt; of graded groups, the fewest responses.")
    ] = 12_500,
    prompts: Annotated[int, typer.Option(min=1, help="Testbed prompts a task, none of which training has seen.")] = 2,
    ns: Annotated[list[int] | None, typer.Option("--n", help="May be repeated; powers of two unless given.")] = None,
    seeds: Seeds = None,
    noise: Noise = None,
    members: Members = 5,
    engine: Engine = "local",
    output: ExperimentFolder = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Best-of-n by every method, gold against KL. Runs of `dmoerm compare` in the same folder are not trained again."""
    from ..experiments.best_of_n import measure_best_of_n
    from .tables import print_best_of_n, screen

    quieten()
    settings = experiment_config(config, overrides or (), output)
    with engine_of(engine, settings) as training:
        found = measure_best_of_n(
            settings,
            _samples(settings, source, samples, prompts, seeds or (0, 1, 2)),
            conditions_of(noise or ()),
            members=members,
            source=f"{source}, {samples} samples a prompt"
            if source != "graded"
            else "held-out groups, graded by people",
            ns=ns,
            command=" ".join(["dmoerm", *sys.argv[1:]]),
            engine=training,
            scoring=_scoring(engine),
        )
    lines = write_found(found, Path(settings.output) / "best_of_n.json", json_file)
    console = screen()
    print_best_of_n(console, found)
    for line in lines:
        console.print(line, soft_wrap=True)


def _scoring(engine: str) -> Scoring:
    if engine == "local":
        from ..experiments.method_suite import score_here

        return score_here
    from ..distributed.method_suite import score_there

    return score_there


def _samples(
    config: Config, source: str, count: int, prompts: int, seeds: Sequence[int]
) -> Mapping[int, Sequence[Samples]]:
    """Seed → what its models score."""
    from ..config import changed
    from ..data.readers import read_groups
    from ..data.splits import load_splits
    from ..experiments.samples import from_groups, from_policy, from_testbed, unseen_prompts
    from ..schema import prompt_key

    loaded = {seed: load_splits(changed(config, {"seed": seed})) for seed in seeds}
    if source == "graded":
        return {seed: from_groups(data.test, count, once=True) for seed, data in loaded.items()}
    if source == "testbed" or source.startswith("policy:"):
        items = unseen_prompts(prompts, [group for data in loaded.values() for group in data.train])
        policy = source.removeprefix("policy:")
        found = from_testbed(items, count) if source == "testbed" else from_policy(policy, items, count)
    else:
        known = {prompt_key(group.prompt) for data in loaded.values() for group in data.train}
        groups = [group for group in read_groups(source).groups if prompt_key(group.prompt) not in known]
        found = from_groups(groups, count)
    return dict.fromkeys(seeds, found)
