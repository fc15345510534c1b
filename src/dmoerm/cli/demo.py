"""`dmoerm demo`: train and evaluate on 480 generated groups with the bundled backbone, then score one prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import JsonFile, Overrides
from .train import output_paths, train_and_measure

if TYPE_CHECKING:
    from ..config import Config
    from ..schema import Group


def command(
    output: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/demo.")] = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Train a small model on 480 generated groups in minutes, evaluate it, and score one prompt."""
    from ..config import load_config
    from .tables import print_results, scores_table, screen

    config = load_config("demo", overrides or ())
    if output is not None:
        config = config.model_copy(update={"output": str(output)})
    model, results = train_and_measure(config, "demo", json_file)
    console = screen()
    print_results(console, results)
    group = _example(config)
    scores = model.score(group.prompt, list(group.responses))
    console.print(f"\nA held-out prompt: {group.prompt}", soft_wrap=True)
    route = sorted(scores[0].route.items(), key=lambda item: -item[1])[:2]
    console.print(f"route: {', '.join(f'{task} {probability:.1%}' for task, probability in route)}")
    console.print(scores_table(list(group.responses), scores))
    for line in output_paths(config, measured=True):
        console.print(line, soft_wrap=True)


def _example(config: Config) -> Group:
    """Return the first held-out group whose prompt is plain text, with its best and worst response only."""
    from ..data.splits import load_splits

    groups = load_splits(config).test
    group = next((group for group in groups if isinstance(group.prompt, str)), groups[0])
    order = sorted(range(len(group.responses)), key=lambda i: (group.grades or (0,) * len(group.responses))[i] or 0)
    kept = [order[-1], order[0]]
    return group.model_copy(update={"responses": tuple(group.responses[i] for i in kept)})
