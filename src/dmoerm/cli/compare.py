"""`dmoerm compare`: every method on the same held-out prompts, with clean labels and with noisy ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .experiments import conditions_of, engine_of, experiment_config, write_results
from .models import quieten
from .options import (
    BaseUrl,
    Engine,
    ExperimentFolder,
    IncludeTrained,
    JsonFile,
    Members,
    Noise,
    Overrides,
    RequestOptions,
    Seeds,
    grouped,
)


@grouped
def command(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped config such as human or demo.")],
    requests: RequestOptions,
    seeds: Seeds = None,
    noise: Noise = None,
    members: Members = 5,
    ablations: Annotated[
        list[str] | None,
        typer.Option("--ablation", help="DMoERM without a part; may be repeated; `all`: every one."),
    ] = None,
    labels: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Recorded labels of LLM judges (Parquet), as methods.")
    ] = None,
    judge: Annotated[str | None, typer.Option(metavar="MODEL", help="A live LLM judge of every pair.")] = None,
    base_url: BaseUrl = "https://api.openai.com/v1",
    shots: Annotated[int, typer.Option(min=0, help="Labeled pairs in the judge's prompt (few-shot).")] = 0,
    external: Annotated[
        list[str] | None,
        typer.Option(
            "--external",
            "--rival",
            metavar="NAME=SOURCE",
            help="A method that is not trained here: a DMoERM or sequence classifier (folder, hub name) or a reward "
            "server (URL).",
        ),
    ] = None,
    include_trained: IncludeTrained = False,
    engine: Engine = "local",
    output: ExperimentFolder = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Train and measure every method on the same held-out prompts. Run again, it resumes where it stopped."""
    from ..experiments.compare import compare_methods
    from ..experiments.external import external_methods
    from ..experiments.methods import ablation_methods
    from .tables import print_comparison, screen

    quieten()
    settings = experiment_config(config, overrides or (), output)
    judge_settings = (requests.endpoint(base_url, judge), shots) if judge else None
    methods, training_prompts = external_methods(
        external or (), labels or (), judge_settings, Path(settings.output) / "judge.sqlite"
    )
    with engine_of(engine, settings) as training:
        comparison = compare_methods(
            settings,
            seeds=seeds or (0, 1, 2),
            conditions=conditions_of(noise or ()),
            members=members,
            ablations=list(ablation_methods()) if ablations == ["all"] else ablations or (),
            external=methods,
            command=" ".join(["dmoerm", *sys.argv[1:]]),
            engine=training,
            include_trained=include_trained,
            training_prompts=training_prompts,
        )
    lines = write_results(comparison, Path(settings.output) / "results.json", json_file)
    console = screen()
    print_comparison(console, comparison)
    for line in lines:
        console.print(line, soft_wrap=True)
