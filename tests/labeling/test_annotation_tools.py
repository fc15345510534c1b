"""docs/labels.md: pairs go to Label Studio and Argilla, and their exports come back as preferences."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dmoerm.data.readers import read_groups

DOCS = Path(__file__).parents[2] / "docs" / "labels.md"
ROW = {"task": "chitchat", "prompt": "I failed my exam.", "responses": ["OK.", "Oh no. What happened?", "So?"]}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the code of the page, and return its variables."""
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text(json.dumps(ROW), encoding="utf-8")
    section = DOCS.read_text(encoding="utf-8").partition("## Labels from people")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code
    variables: dict[str, Any] = {}
    exec(code[1], variables)
    return variables


def check(rows: list[dict[str, Any]]) -> None:
    """Require that the second response has won each of its pairs, overall and on empathy."""
    Path("answers.json").write_text(json.dumps(rows), encoding="utf-8")
    groups = read_groups(Path("answers.json")).groups
    assert [group.responses for group in groups] == [("OK.", ROW["responses"][1]), (ROW["responses"][1], "So?")]
    assert [group.scores for group in groups] == [(0, 1), (1, 0)]
    assert [group.capabilities for group in groups] == [{"empathy": (0, 1)}, {"empathy": (1, 0)}]
    assert {(group.task, group.prompt) for group in groups} == {("chitchat", ROW["prompt"])}


def test_label_studio(written: dict[str, Any]) -> None:
    tasks = json.loads(Path("studio.json").read_text(encoding="utf-8"))
    assert len(tasks) == len(written["pairs"]) == 3
    sides = {0: ("right", "Response 2"), 2: ("left", "Response 1")}
    exported = []
    for index, (side, choice) in sides.items():
        results = [
            ("overall", "response_1,response_2", "pairwise", {"selected": side}),
            ("empathy", "prompt", "choices", {"choices": [choice]}),
        ]
        answers = [dict(zip(("from_name", "to_name", "type", "value"), each, strict=True)) for each in results]
        annotations = [{"completed_by": 1, "was_cancelled": False, "result": answers}]
        exported.append(tasks[index] | {"id": index + 1, "annotations": annotations})
    check(exported)


def test_argilla(written: dict[str, Any]) -> None:
    exported = []
    for pair, best in (written["pairs"][0], "response_2"), (written["pairs"][2], "response_1"):
        fields = {name: text for name, text in pair.items() if name != "task"}
        answer = [{"value": best, "user_id": "u", "status": "submitted"}]
        exported.append(
            {
                "id": str(len(exported)),
                "fields": fields,
                "metadata": {"task": pair["task"]},
                "responses": {"overall": answer, "empathy": answer},
            }
        )
    check(exported)
