"""`dmoerm compare`: every method on the same held-out prompts, with clean labels and with noisy ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .models import quieten
from .options import JsonFile, Overrides

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config import Config
    from ..evaluation.cells import Outside
    from ..evaluation.panel import Method

_NOISY = (0.25, 0.15)


def command(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped config such as human or demo.")],
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="May be repeated; 0, 1 and 2 unless given.")] = None,
    noise: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SCORES,CAPABILITIES",
            help="A condition: shares of the training part's overall and capability pairs that are reversed. "
            "May be repeated; clean=0,0 and noisy=0.25,0.15 unless given.",
        ),
    ] = None,
    members: Annotated[int, typer.Option(min=2, help="Models in an ensemble.")] = 5,
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
    output: Annotated[Path | None, typer.Option(help="The folder; `output` of the config, unless given.")] = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Train and measure every method. Started again, it goes on where it was stopped."""
    from ..config import changed, load_config
    from ..evaluation.ablations import ABLATIONS
    from ..evaluation.comparison import compare_methods
    from ..evaluation.report import write_folder_report
    from ..paths import write_file
    from .tables import print_comparison, screen

    quieten()
    settings = load_config(config, overrides or ())
    settings = changed(settings, {"output": str(output or f"{settings.output}-compare")})
    found = compare_methods(
        settings,
        seeds=seeds or (0, 1, 2),
        conditions=conditions_of(noise or ()),
        members=members,
        ablations=list(ABLATIONS) if ablations == ["all"] else ablations or (),
        outside=_outside(settings, labels or (), judge, base_url, shots, rivals or ()),
        command=" ".join(["dmoerm", *sys.argv[1:]]),
    )
    place = Path(settings.output) / "results.json"
    for file in (place, *([json_file] if json_file else [])):
        write_file(file, found.to_json())
    page = write_folder_report(place.parent)
    console = screen()
    print_comparison(console, found)
    for line in (f"results: {place}", f"report: {page}"):
        console.print(line, soft_wrap=True)


def conditions_of(noise: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Name → shares of reversed overall and capability pairs; clean and noisy where none is given."""
    from ..errors import ConfigError

    found = {}
    for text in noise:
        name, _, shares = text.partition("=")
        try:
            scores, capabilities = map(float, shares.split(","))
        except ValueError:
            raise ConfigError(f"--noise {text}: write it as NAME=0.25,0.15") from None
        found[name] = (scores, capabilities)
    return found or {"clean": (0.0, 0.0), "noisy": _NOISY}


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
    from ..evaluation.external import method_of
    from ..evaluation.judges import live, recorded

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
    from ..evaluation.cells import Outside

    return Outside(lambda _: method, f"trained elsewhere: {place}")
