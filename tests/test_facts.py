"""Facts about the source that `make facts` prints and that must stay true."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import facts
import settings_page
import words


def test_every_class_name_has_one_meaning():
    assert {name: modules for name, modules in facts.class_names().items() if len(modules) > 1} == {}


def test_the_settings_page_is_up_to_date():
    expected = settings_page.settings_page()
    assert settings_page.PAGE.read_text(encoding="utf-8") == expected, "run: python tools/settings_page.py"
    assert "`phase2.lora.rank`" in expected


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("found = 1", 1),
        ("def told(place, *, wanted): ...", 3),
        ('"""The run is begun anew; whoever comes waits."""', 2),
        ("x = 1  # one a response", 1),
        ("result = 1  # one per response", 0),
    ],
)
def test_the_word_list_finds_names_and_sentences(text, count, tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "module.py").write_text(text + "\n", encoding="utf-8")
    for page in ("README.md", "CHANGELOG.md", "SECURITY.md"):
        (tmp_path / page).write_text("Plain words.\n", encoding="utf-8")
    monkeypatch.setattr(words, "ROOT", tmp_path)
    assert len(list(words.findings())) == count
