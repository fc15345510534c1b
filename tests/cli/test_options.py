from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from dmoerm.cli.options import grouped


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(help="The width.")]
    height: Annotated[int, typer.Option(min=1)] = 2


def test_each_field_of_a_group_is_an_option() -> None:
    app, calls = typer.Typer(), []

    @app.command()
    @grouped
    def command(name: str, size: Size, deep: bool = False) -> None:
        """Draw."""
        calls.append((name, size, deep))

    assert CliRunner().invoke(app, ["box", "--width", "3", "--deep"]).exit_code == 0
    assert CliRunner().invoke(app, ["box", "--height", "5", "--width", "4"]).exit_code == 0
    assert calls == [("box", Size(3, 2), True), ("box", Size(4, 5), False)]
    assert CliRunner().invoke(app, ["box"]).exit_code == 2
    assert CliRunner().invoke(app, ["box", "--width", "3", "--height", "0"]).exit_code == 2
    shown = CliRunner(env={"COLUMNS": "100", "TERM": "dumb"}).invoke(app, ["--help"]).output
    assert "Draw." in shown
    assert "The width." in shown
