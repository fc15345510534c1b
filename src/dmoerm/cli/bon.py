"""`dmoerm bon`: the gold reward of the best of n samples by each method's reward."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .experiments import conditions_of, engine_of, experiment_config, scoring_of, write_results
from .models import quieten
from .options import Engine, ExperimentFolder, IncludeTrained, JsonFile, Members, Noise, Overrides, Seeds


def command(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped config such as human or demo.")],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            help="testbed: its generator and gold reward; graded: held-out groups graded by people; a file of groups; "
            "policy:PATH: a causal language model that answers testbed prompts.",
        ),
    ] = "testbed",
    samples: Annotated[
        int, typer.Option(min=2, help="Samples per prompt; of graded groups, the fewest responses.")
    ] = 12_500,
    prompts: Annotated[int, typer.Option(min=1, help="Testbed prompts per task; none is a training prompt.")] = 2,
    ns: Annotated[list[int] | None, typer.Option("--n", help="May be repeated; powers of two unless given.")] = None,
    seeds: Seeds = None,
    noise: Noise = None,
    members: Members = 5,
    include_trained: IncludeTrained = False,
    engine: Engine = "local",
    output: ExperimentFolder = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Measure best-of-n by every method, gold against KL. Runs of `dmoerm compare` in the same folder are reused."""
    from ..experiments.best_of_n import measure_best_of_n
    from ..experiments.samples import open_source
    from .tables import print_best_of_n, screen

    quieten()
    settings = experiment_config(config, overrides or (), output)
    chosen = seeds or (0, 1, 2)
    with engine_of(engine, settings) as training:
        opened = open_source(source, settings, chosen, samples, prompts, include_trained)
        results = measure_best_of_n(
            settings,
            opened.samples,
            conditions_of(noise or ()),
            members=members,
            source=opened.description,
            overlap=opened.overlap,
            ns=ns,
            command=" ".join(["dmoerm", *sys.argv[1:]]),
            engine=training,
            scoring=scoring_of(engine),
        )
    lines = write_results(results, Path(settings.output) / "best_of_n.json", json_file)
    console = screen()
    print_best_of_n(console, results)
    for line in lines:
        console.print(line, soft_wrap=True)
