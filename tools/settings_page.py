"""Write `docs/settings.md` from the settings' docstrings, types and defaults: `python tools/settings_page.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dmoerm.config.documentation import SettingsGroup, setting_groups

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """# Settings

<!-- Written by `python tools/settings_page.py` from src/dmoerm/config/settings.py; do not edit. -->

A config is a YAML file of these settings; `extends: NAME` starts from a shipped config, and `--set a.b=value` overrides
single settings on the command line. A setting that does not exist, or a value outside its bounds, is an error.
"""


def settings_page() -> str:
    """The page: one table for each group of settings."""
    return "\n".join([HEAD, *(line for group in setting_groups() for line in _table(group))])


def _table(group: SettingsGroup) -> Iterator[str]:
    yield f"## {group.name or 'Top level'}\n"
    if group.name:
        yield f"{_escaped(group.meaning)}\n"
    yield "| setting | default | values | meaning |\n|---|---|---|---|"
    for name, default, values, meaning in group.settings:
        yield f"| `{name}` | {default} | {values} | {_escaped(meaning)} |"
    yield ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
