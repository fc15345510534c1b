"""Tables on the screen: names with brackets, and remarks beside the numbers."""

from __future__ import annotations

import pytest
from report_samples import comparison
from sample_results import DIFFERENCE, ESTIMATE, example

from dmoerm.cli.tables import print_comparison, print_results, screen

TASKS = ("code [python]", "means [/b]")


def test_results_show_names_with_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    names = (*TASKS, "mean")
    results = example(
        accuracy={"dmoerm": dict.fromkeys(names, ESTIMATE), "general": dict.fromkeys(names, ESTIMATE)},
        paired={"dmoerm - general": dict.fromkeys(names, DIFFERENCE)},
        capabilities={TASKS[0]: {"[red]": ESTIMATE}},
    )
    print_results(screen(), results)
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*TASKS, "[red]"))


def test_a_comparison_shows_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(screen(), comparison(methods=("general", "dmoerm"), tasks=TASKS))
    shown = capsys.readouterr().out
    assert all(name in shown for name in TASKS)
