"""A new kind of results takes one new file."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmoerm.report import read_measured, report_html, write_folder_report
from dmoerm.report import sections as sections_package
from dmoerm.report.results_kinds import KINDS, file_names
from dmoerm.report.sections import load_sections

NEW_FILE = """
from typing import Literal

from dmoerm.evaluation.results import Document
from dmoerm.report.results_kinds import shows
from dmoerm.report.view import Code, Section, make_section


class Greeting(Document):
    kind: Literal["greeting"] = "greeting"
    text: str


@shows(Greeting, "greeting.json")
def greeting_section(greeting: Greeting) -> Section:
    return make_section("Greeting", [], [("Words", [Code(greeting.text)])])
"""


@pytest.fixture
def greeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with results of a kind that one new file of the package defines."""
    (tmp_path / "sections").mkdir()
    (tmp_path / "sections" / "greeting.py").write_text(NEW_FILE)
    monkeypatch.setattr(sections_package, "__path__", [*sections_package.__path__, str(tmp_path / "sections")])
    load_sections()
    (tmp_path / "greeting.json").write_text('{"schema": 2, "kind": "greeting", "text": "Good <morning>"}')
    yield tmp_path
    del KINDS["greeting"]


def test_a_new_kind_of_results_is_one_file(greeting: Path) -> None:
    results = read_measured(greeting / "greeting.json")
    assert "<pre>Good &lt;morning&gt;</pre>" in report_html(results)
    assert "<h2" in write_folder_report(greeting).read_text()


def test_results_json_comes_first() -> None:
    assert file_names() == ["results.json"]
    assert set(KINDS) == {None, "comparison"}
