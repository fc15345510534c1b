"""`dmoerm config`: list the shipped configs, show a config with all its settings, explain the settings."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Overrides

app = typer.Typer(no_args_is_help=True, help="List and show configs, and explain their settings.")


@app.command("list")
def list_configs() -> None:
    """List the shipped configs and what they are for."""
    from rich.table import Table

    from ..config import shipped_configs
    from .tables import screen

    table = Table("config", "what it is for", show_lines=True)
    for name, file in shipped_configs().items():
        lines = file.read_text(encoding="utf-8").splitlines()
        comment = [line.lstrip("# ") for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")]]
        table.add_row(name, " ".join(comment))
    screen().print(table)


@app.command()
def show(
    config: Annotated[str, typer.Argument(help="YAML file, or name of a shipped config such as human or fast.")],
    overrides: Overrides = None,
) -> None:
    """Print all settings of a config as YAML, those that it extends and the defaults included."""
    from ..config import dump_config, load_config

    typer.echo(dump_config(load_config(config, overrides or ())), nl=False)


@app.command()
def docs(
    name: Annotated[str, typer.Argument(help="A setting or a group, such as phase2 or data.files; default: all.")] = "",
) -> None:
    """Explain settings: default, values and meaning."""
    from rich.padding import Padding
    from rich.text import Text

    from ..config.documentation import setting_groups
    from ..errors import ConfigError, did_you_mean
    from .tables import screen

    groups = list(setting_groups())
    chosen = [s for group in groups for s in group.settings if not name or f"{s.name}.".startswith(f"{name}.")]
    if not chosen:
        known = [group.name for group in groups] + [s.name for group in groups for s in group.settings]
        raise ConfigError("; ".join(filter(None, [f"{name}: unknown setting", did_you_mean(name, known)])))
    console = screen()
    for setting in chosen:
        _, default, values, meaning = (text.replace("`", "") for text in setting)
        console.print(Text.assemble((setting.name, "bold"), f" = {default}  ({values})"))
        console.print(Padding(Text(meaning), (0, 0, 0, 4), expand=False))
