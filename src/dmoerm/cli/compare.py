"""`dmoerm compare`: measure every method on the same held-out prompts, with clean and with noisy labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .experiments import ConfigName, ExperimentOptions, command_line, open_engine, write_results
from .models import quieten
from .options import BaseUrl, RequestOptions, grouped

if TYPE_CHECKING:
    from ..experiments.methods import Method
    from ..model.training_prompts import TrainingPrompts


@dataclass(frozen=True)
class ExternalOptions:
    """The methods that are not trained here."""

    labels: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Recorded labels of LLM judges (Parquet); each judge is a method."),
    ] = None
    judge: Annotated[str | None, typer.Option(metavar="MODEL", help="A live LLM judge of every pair.")] = None
    base_url: BaseUrl = "https://api.openai.com/v1"
    shots: Annotated[int, typer.Option(min=0, help="Labeled pairs in the judge's prompt (few-shot).")] = 0
    external: Annotated[
        list[str] | None,
        typer.Option(
            "--external",
            "--rival",
            metavar="NAME=SOURCE",
            help="A method that is not trained here: a DMoERM or sequence classifier (folder, hub name) or a reward "
            "server (URL).",
        ),
    ] = None

    def open(self, requests: RequestOptions, store: Path) -> tuple[list[Method], list[TrainingPrompts]]:
        """Open the methods; see `external_methods`. The judge's answers are recorded in `store`."""
        from ..experiments.external import external_methods

        judge = (requests.endpoint(self.base_url, self.judge), self.shots) if self.judge else None
        return external_methods(self.external or (), self.labels or (), judge, store)


@grouped
def command(
    config: ConfigName,
    requests: RequestOptions,
    options: ExperimentOptions,
    external: ExternalOptions,
) -> None:
    """Train and measure every method on the same held-out prompts. Run again, it resumes where it stopped."""
    from ..experiments.comparison import compare_methods
    from .tables import print_comparison

    quieten()
    settings = options.config(config)
    folder = Path(settings.output)
    methods, training_prompts = external.open(requests, folder / "judge.sqlite")
    with open_engine(options.engine, settings) as engine:
        comparison = compare_methods(
            settings,
            seeds=options.run_seeds,
            conditions=options.conditions,
            members=options.members,
            methods=options.methods,
            ablations=options.ablations,
            external=methods,
            command=command_line(),
            engine=engine,
            include_trained=options.include_trained,
            training_prompts=training_prompts,
        )
    write_results(comparison, folder / "results.json", options.json_file, lambda c: print_comparison(c, comparison))
