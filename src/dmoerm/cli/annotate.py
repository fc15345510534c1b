"""`dmoerm annotate`: collect preferences of people on a page in the browser.

dmoerm annotate [run] DATA…                     serve the page and record the answers in a store
dmoerm annotate agreement STORE                 print the agreement between annotators
dmoerm annotate export STORE --out rows.jsonl   write the answers as native rows
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .labeling import print_error_line
from .options import Format, JsonFile, RunByDefault
from .rows import Map
from .tables import plain_table, screen

if TYPE_CHECKING:
    from ..annotation.agreement import AnnotatorAgreement
    from ..taxonomy import Taxonomy

app = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    help="Collect preferences of people on a page in the browser (the default command), and export them.",
)

Store = Annotated[Path, typer.Argument(metavar="STORE", help="The record of all answers (SQLite).")]


@app.command("run")
def run(
    data: Annotated[list[str], typer.Argument(metavar="DATA…", help="Prompts with two or more responses each.")],
    taxonomy: Annotated[
        str | None, typer.Option(help="paper-en, paper-zh or a YAML file: ask about its capabilities, too.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Record of all answers. Default: NAME.annotations.sqlite.")
    ] = None,
    pairs_per_group: Annotated[
        int | None, typer.Option(min=1, help="Take a random sample of the pairs of each group. Default: all pairs.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of pairs and of the sides of responses.")] = 0,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8001,
    format: Format = "auto",
    map: Map = None,
    split: Annotated[str, typer.Option(help="Split to read, for datasets only.")] = "train",
) -> None:
    """Serve the annotation page on this machine. Run it again to continue with the same answers."""
    from ..data.columns import parse_columns
    from ..data.readers import read_queries
    from ..errors import ConfigError
    from ..taxonomy import load_taxonomy

    try:
        from ..annotation.server import HOST, serve_annotation
        from ..annotation.session import AnnotationSession, select_pairs
        from ..annotation.store import AnnotationStore
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the page needs the package {error.name}: pip install '.[serve]' in dmoerm's folder"
        ) from None
    tasks = load_taxonomy(taxonomy) if taxonomy else None
    columns = parse_columns(map or (), data)
    queries = [query for file in data for query in read_queries(file, format=format, split=split, columns=columns)]
    pairs, reasons = select_pairs(queries, pairs_per_group, seed)
    for reason, count in reasons.items():
        print_error_line(f"{count} of {len(queries)} groups {reason}; they are left out")
    _print_unknown_tasks({id(pair.group): pair.group.task for pair in pairs}.values(), tasks)
    path = store or Path(f"{Path(data[0]).stem}.annotations.sqlite")
    answers = AnnotationStore(path, create=True)
    added = answers.add_pairs(pairs)
    print_error_line(f"{len(pairs)} pairs, {added} of them new; answers are recorded in {path}")
    print_error_line(f"annotate at http://{HOST}:{port}/?annotator=NAME; Ctrl-C stops the server")
    try:
        serve_annotation(AnnotationSession(answers, tasks, seed), port)
    finally:
        answers.close()


def _print_unknown_tasks(tasks: Collection[str | None], taxonomy: Taxonomy | None) -> None:
    """Print the number of groups that are asked about overall only although there is a taxonomy."""
    if taxonomy is None:
        return
    with_capabilities = {name for name, task in taxonomy.tasks.items() if task.capabilities}
    if missing := sum(task not in with_capabilities for task in tasks):
        print_error_line(
            f"{missing} of {len(tasks)} groups have no task with capabilities in the taxonomy "
            f"(its tasks: {', '.join(taxonomy.tasks)}); only the overall preference is asked"
        )


@app.command("agreement")
def agreement(store: Store, json_file: JsonFile = None) -> None:
    """Print how often two annotators gave the same verdict, and Cohen's κ."""
    from ..annotation.agreement import annotator_agreement
    from ..annotation.store import AnnotationStore
    from ..io.paths import write_file

    rows = annotator_agreement(AnnotationStore(store))
    _print_agreement(rows)
    if json_file is not None:
        write_file(json_file, json.dumps([asdict(row) for row in rows], ensure_ascii=False, indent=2) + "\n")


def _print_agreement(rows: list[AnnotatorAgreement]) -> None:
    if not rows:
        print_error_line("no two annotators have answered the same question yet")
        return
    cells = [
        (f"{row.first}, {row.second}", row.capability, row.pairs, row.agreement, _kappa(row.kappa)) for row in rows
    ]
    screen().print(plain_table("", ("annotators", "question", "pairs", "agreement", "κ"), cells))


def _kappa(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


@app.command("export")
def export(
    store: Store,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The rows, one pair per line, as JSON Lines.")],
) -> None:
    """Write the answers as native rows, which `dmoerm data check` and `dmoerm train` read."""
    from ..annotation.export import exported_rows
    from ..annotation.store import AnnotationStore
    from ..io.paths import write_file

    rows = exported_rows(AnnotationStore(store))
    write_file(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    people = max(len(grades) for row in rows for by_response in row["annotators"].values() for grades in by_response)
    typer.echo(f"{len(rows)} rows with the answers of {people} {'person' if people == 1 else 'people'}: {out}")
