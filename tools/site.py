"""Pages of the documentation site that are made from other files: `make docs`.

A hook of mkdocs. The front page is README.md; CONTRIBUTING.md, SECURITY.md and CHANGELOG.md are pages as well. The page
of the command line is written from the commands themselves.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from dmoerm.cli import COMMANDS, load_command

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md"} | {
    f"{name}.md": f"{name.lower()}.md" for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG")
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "command-line.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point the links of the repository's files to the site's pages."""
    markdown = re.sub(r"\]\((?:\.\./)?docs/", "](", markdown)
    for source, page in PAGES.items():
        markdown = re.sub(rf"\]\((\.\./)?{source}", f"]({page}", markdown)
    return re.sub(r"\[([^]]+)\]\((\.\./)?(LICENSE|src/|examples/)[^)]*\)", r"\1", markdown)  # files outside the site


def command_line() -> str:
    """Return the page of all commands, their arguments and options."""
    parts = ["# Command line", "`dmoerm COMMAND --help` prints this text."]
    for name, (_, summary) in COMMANDS.items():
        command = load_command(name)
        commands = getattr(command, "commands", None)
        parts.append(f"## dmoerm {name}\n\n{summary}")
        for title, each in (
            [(f"{name} {key}", value) for key, value in commands.items()] if commands else [(name, command)]
        ):
            context = each.make_context(title, [], resilient_parsing=True)
            if commands:
                parts.append(f"### dmoerm {title}\n\n{each.help}")
            parts.append(f"```\ndmoerm {title} {' '.join(each.collect_usage_pieces(context))}\n```")
            rows = [row for p in each.get_params(context) if (row := p.get_help_record(context))]
            cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
            parts.append(
                "| argument or option | meaning |\n|---|---|\n" + "\n".join(f"| `{a}` | {b} |" for a, b in cells)
            )
    return "\n\n".join(parts) + "\n"
