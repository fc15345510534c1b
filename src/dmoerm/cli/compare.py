"""`dmoerm compare`: every method on the same held-out prompts, with clean labels and with noisy ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .experiments import conditions_of, engine_of, experiment_config, write_found
from .models import quieten
from .options import Engine, ExperimentFolder, JsonFile, Members, Noise, Overrides, Seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config import Config
    from ..experiments.method_suite import Method
    from ..experiments.runs import Outside


def command(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped config such as human or demo.")],
    seeds: Seeds = None,
    noise: Noise = None,
    members: Members = 5,
    ablations: Annotated[
        list[str] | None, typer.Option("--ablation", help="A part to take away; may be repeated; `all`: each of them.")
    ] = None,
    labels: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A judge's recorded labels (Parquet), as methods.")
    ] = None,
    judge: Annotated[str | None, typer.Option(metavar="MODEL", help="A live LLM judge, asked for every pair.")] = None,
    base_url: Annotated[
        str, typer.Option(envvar="OPENAI_BASE_URL", help="The judge's endpoint. The key: $OPENAI_API_KEY.")
    ] = "https://api.openai.com/v1",
    shots: Annotated[int, typer.Option(min=0, help="Labelled pairs that the judge is shown first.")] = 0,
    rivals: Annotated[
        list[str] | None,
        typer.Option(
            "--rival", metavar="NAME=PLACE", help="A sequence classifier (folder, hub name) or reward server (URL)."
        ),
    ] = None,
    engine: Engine = "local",
    output: ExperimentFolder = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Train and measure every method. Started again, it goes on where it was stopped."""
    from ..experiments.ablations import ABLATIONS
    from ..experiments.compare import compare_methods
    from .tables import print_comparison, screen

    quieten()
    settings = experiment_config(config, overrides or (), output)
    with engine_of(engine, settings) as training:
        found = compare_methods(
            settings,
            seeds=seeds or (0, 1, 2),
            conditions=conditions_of(noise or ()),
            members=members,
            ablations=list(ABLATIONS) if ablations == ["all"] else ablations or (),
            outside=_outside(settings, labels or (), judge, base_url, shots, rivals or ()),
            command=" ".join(["dmoerm", *sys.argv[1:]]),
            engine=training,
        )
    lines = write_found(found, Path(settings.output) / "results.json", json_file)
    console = screen()
    print_comparison(console, found)
    for line in lines:
        console.print(line, soft_wrap=True)


def _outside(
    config: Config,
    labels: Sequence[Path],
    judge: str | None,
    base_url: str,
    shots: int,
    rivals: Sequence[str],
) -> dict[str, Outside]:
    """The methods that are not trained here, by name."""
    from ..errors import ConfigError
    from ..experiments.external import method_of
    from ..experiments.judges import live, recorded

    found = recorded(labels)
    if judge:
        found |= live(judge, base_url, shots, Path(config.output) / "judge.sqlite")
    for text in rivals:
        name, _, place = text.partition("=")
        if not place:
            raise ConfigError(f"--rival {text}: write it as NAME=PLACE")
        if name in found:
            raise ConfigError(f"--rival {text}: there is a method of that name; give it another")
        found[name] = _rival(method_of(place), place)
    return found


def _rival(method: Method, place: str) -> Outside:
    from ..experiments.runs import Outside

    return Outside(lambda _: method, f"trained elsewhere: {place}")
