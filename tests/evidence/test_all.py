"""The stored evidence: every claim holds, pages are up to date, and every command of all.yaml can be started."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from evidence import claims, pages
from evidence.all import experiments
from evidence.bon import options_of_bon
from evidence.compare import options_parser, parsed
from evidence.conditions import separated
from evidence.policies import options_of_policies, settings_of

ROOT = Path(__file__).parents[2]
PARSERS = {"compare": lambda: options_parser(None), "bon": options_of_bon}
COMMANDS = [
    shlex.split(command)
    for experiment in experiments()
    for command in (experiment.command, experiment.small)
    if command.startswith("python -m evidence.")
]


@pytest.mark.parametrize(
    ("page", "chosen"),
    [("docs/results.md", claims.ANSWERS), ("docs/results.md", claims.CLAIMS), ("README.md", claims.MAIN)],
)
def test_every_claim_holds_and_is_on_its_page(page: str, chosen: tuple[claims.Claim, ...]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    rows = claims.rows(pages.stored(), chosen)
    assert len(rows) == len(chosen)
    assert all(row[1] in text and row[2] in text for row in rows)


def test_a_claim_that_does_not_hold_is_an_error() -> None:
    wrong = claims.Claim("too much", "compare_human", claims.over("general"), claims.below)
    with pytest.raises(ValueError, match="does not hold any more: too much"):
        claims.rows(pages.stored(), (wrong,))


def test_a_claim_names_the_backbone_that_it_does_not_hold_for() -> None:
    files = {"compare_human_gemma": (known := pages.stored()["compare_human"]), "compare_human": known}
    claim = claims.Claim("both", "compare_human", claims.over("general"), claims.above)
    assert claim.row(files)[1] == claim.row(files)[2]
    with pytest.raises(ValueError, match="compare_human_gemma"):
        claims.Claim("both", "compare_human", claims.over("general"), claims.above, claims.below).row(files)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_pages_are_filled_from_the_stored_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert pages.filled(text, pages.stored()) == text, "run python -m evidence.pages"


def test_pictures_have_no_tex_which_the_style_does_not_read() -> None:
    for picture in (ROOT / "docs").glob("*.svg"):
        assert "$" not in picture.read_text(encoding="utf-8"), picture.name


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_all_yaml_has_known_options_settings_and_methods(words: list[str]) -> None:
    module, arguments = words[2].removeprefix("evidence."), words[3:]
    if module in PARSERS:
        options = parsed(PARSERS[module](), arguments)
        for changes in options.conditions.values():
            separated(options.config, changes)
    elif module == "policies":
        assert settings_of(options_of_policies().parse_args(arguments)).rl.steps
    else:
        assert (ROOT / "evidence" / f"{module}.py").exists()
