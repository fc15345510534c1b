"""The page scores a file: batches, progress, bad rows, a busy server, stopping, and the saved rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmoerm.data.readers import read_queries
from dmoerm.evaluation.scoring_files import RowScorer

ROWS: list[dict[str, Any]] = [
    {"id": f"row-{i}", "prompt": f"What about {i}?", "responses": [f"So. {j} " * (j + 1) for j in range(1 + i % 4)]}
    for i in range(60)
]


@pytest.fixture
def chosen(visit: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A function that opens the page and chooses a file with these lines."""

    def choose(*lines: str) -> Any:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        page = visit()
        page.get_by_label("File", exact=True).set_input_files(file)
        page.get_by_role("button", name="Start").click(trial=True)  # waits until it is enabled
        return page

    return choose


def said(page: Any, words: str) -> None:
    page.locator("#file-status", has_text=words).wait_for()


def saved(page: Any) -> list[dict[str, Any]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save rows").click()
    assert download.value.suggested_filename == "rows-scored.jsonl"
    return [json.loads(line) for line in Path(download.value.path()).read_text(encoding="utf-8").splitlines()]


def without_rounding(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_rounding(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_rounding(each) for each in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def test_the_saved_rows_are_those_of_the_command(chosen: Callable[..., Any], trained_run: Any, tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "Hi!", "responses": ["Hello.", ""], "task": "chitchat"}]
    rows[7] |= {"tools": [{"type": "function", "function": {"name": "clock", "parameters": {}}}]}
    sent = []
    page = chosen(*map(json.dumps, rows))
    page.on("request", lambda request: request.method == "POST" and sent.append(request))
    page.get_by_role("button", name="Start").click()
    said(page, "Scored 61 prompts with 152 responses.")
    bar = page.get_by_role("progressbar", name="Rows scored")
    assert (bar.get_attribute("max"), bar.evaluate("bar => bar.value")) == ("61", 61)
    expected = list(RowScorer(trained_run.model).rows(read_queries(str(tmp_path / "rows.jsonl"))))
    assert saved(page) == [without_rounding(row) for row in expected]
    assert len(sent) >= 3
    items = [item for request in sent for item in request.post_data_json["items"]]
    assert [item.get("tools") for item in items] == [row.get("tools") for row in rows]
    assert {request.headers["priority"] for request in sent} == {"u=5"}
    assert all(sum(len(item["responses"]) for item in request.post_data_json["items"]) <= 64 for request in sent)


def test_bad_rows_are_skipped_with_their_reasons_as_text(chosen: Callable[..., Any]) -> None:
    good = json.dumps({"prompt": "Hi!", "responses": ["Hello."]})
    markup = json.dumps({"prompt": "Hi!", "responses": ["Hello."], "task": "<img src=x onerror='window.broken = 1'>"})
    page = chosen(good, "{not json", "", good, json.dumps({"prompt": "Hi!"}), markup, "[1]")
    page.get_by_role("button", name="Start").click()
    said(page, "Scored 2 prompts with 2 responses. 4 rows skipped.")
    reasons = page.get_by_role("list", name="Skipped lines").get_by_role("listitem").all_inner_texts()
    assert [reason.split(":")[0] for reason in reasons] == ["Line 2", "Line 5", "Line 6", "Line 7"]
    assert "responses" in reasons[1]
    assert "<img src=x" in reasons[2]
    assert page.locator("#file-skipped img").count() == 0
    assert page.evaluate("window.broken === undefined")
    assert [row["line"] for row in saved(page)] == [1, 4]


def test_a_busy_server_a_stop_and_a_lost_server(chosen: Callable[..., Any]) -> None:
    """A refused batch is sent again; what was scored before a stop or an error is neither lost nor scored twice."""
    page = chosen(*map(json.dumps, ROWS), "{")
    busy = {"error": {"message": "busy", "type": "overloaded_error", "param": None, "code": 429}}
    states = ["busy", "hold", "lost", "pass"]  # the first batch passes in any but the first

    def answer(route: Any) -> None:
        state = states[0]
        if state == "busy":
            states.pop(0)
            route.fulfill(status=429, json=busy, headers={"Retry-After": "0"})
        elif state == "lost":
            states.pop(0)
            route.fulfill(status=502, body="a proxy's page")
        elif state == "pass" or route.request.post_data_json["items"][0]["id"] == ROWS[0]["id"]:
            route.continue_()

    page.route("**/v1/score", answer)
    page.get_by_role("button", name="Start").click()
    page.locator("#file-count", has_text=re.compile("^[1-9]")).wait_for()
    page.get_by_role("button", name="Stop").click()
    said(page, "Stopped.")
    states.remove("hold")
    done = page.locator("#file-progress").evaluate("bar => bar.value")
    assert 0 < done < 61
    assert [row["id"] for row in saved(page)] == [row["id"] for row in ROWS[:done]]
    page.get_by_role("button", name="Continue").click()
    said(page, "502")
    page.get_by_role("button", name="Continue").click()
    said(page, "Scored 60 prompts with 150 responses. 1 row skipped.")
    assert [row["id"] for row in saved(page)] == [row["id"] for row in ROWS]
