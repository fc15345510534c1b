"""The cache of scores: the same bits as without it, under any weights and risk, and never more entries than allowed."""

from __future__ import annotations

import re

import httpx2
import pytest
from running import served

from dmoerm.schema import Message, Query
from dmoerm.scores import Score
from dmoerm.serving import ServingConfig, create_app
from dmoerm.serving.metrics import Metrics
from dmoerm.serving.score_cache import ScoreCache, merged, unknown

RESPONSES = ["Oh no. What happened?", "The exam took place.", "No.", ""]
TURNS = [{"role": "user", "content": "I failed."}]


def score(reward: float) -> Score:
    return Score(reward, None, {}, {}, None, 1.0)


def items(*responses: str, **fields: object) -> dict[str, object]:
    return {"items": [{"id": "x", "prompt": "I failed.", "responses": list(responses), **fields}]}


REQUESTS = [
    items(*RESPONSES[:2]),
    items(*RESPONSES),  # two of them are known
    items(*RESPONSES[::-1]) | {"weights": {"empathy": 3}, "risk": 0.5},
    items(*RESPONSES, task="objective_qa"),
    {"items": [{"id": "x", "prompt": TURNS, "responses": RESPONSES}, *items("No.", "Yes.")["items"]]},  # pyright: ignore
]


def test_answers_have_the_same_bits_as_without_it(trained_run):
    """In the deterministic mode, where scores do not depend on what shares a pass."""
    with (
        served(create_app(trained_run.model, ServingConfig(deterministic=True, score_cache=100))) as cached,
        served(create_app(trained_run.model, ServingConfig(deterministic=True))) as plain,
    ):
        for body in [*REQUESTS, REQUESTS[2]]:
            answers = [httpx2.post(f"{url}/v1/score", json=body) for url in (cached, plain)]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert answers[0].json()["items"] == answers[1].json()["items"]
        metrics = httpx2.get(f"{cached}/metrics").text
    counts = {name: float(value) for name, value in re.findall(r"^dmoerm_score_cache_(\w+)_total (.+)$", metrics, re.M)}
    asked = 2 + 4 + 4 + 4 + 6 + 4
    new = 2 + 2 + 0 + 4 + 5  # "No." to the text is known; the conversation is another prompt
    assert counts == {"misses": new, "hits": asked - new}


def test_a_repeated_request_needs_no_pass(trained_run):
    with served(create_app(trained_run.model, ServingConfig(score_cache=100))) as url:

        def passes() -> str:
            return re.findall(r"^dmoerm_batch_tokens_count (.+)$", httpx2.get(f"{url}/metrics").text, re.M)[0]

        first = httpx2.post(f"{url}/v1/score", json=REQUESTS[1]).json()
        before = passes()
        again = httpx2.post(f"{url}/v1/score", json=REQUESTS[1]).json()
        assert (again["items"], passes()) == (first["items"], before)
        assert (first["usage"]["tokens"] > 0, again["usage"]["tokens"]) == (True, 0)
        assert httpx2.post(f"{url}/v1/score", json=items("No.", task="none")).status_code == 422


def test_only_exact_texts_are_the_same():
    cache = ScoreCache(100, Metrics())
    query = Query(prompt="a", responses=("b", "c"))
    cache.store([query], [[score(1), score(2)]])
    assert cache.find([Query(prompt="a", responses=("c", "b"))]) == [[score(2), score(1)]]
    for other in (
        Query(prompt="a", responses=("b ",)),
        Query(prompt="a ", responses=("b",)),
        Query(prompt="ab", responses=("",)),
        Query(prompt="a", responses=("b",), task="chitchat"),
        Query(prompt="a", responses=("b",), tools=({"type": "function", "function": {"name": "f"}},)),
        Query(prompt=(Message(role="user", content="a"),), responses=("b",)),
        Query(prompt=(Message(role="system", content="a"), Message(role="user", content="a")), responses=("b",)),
    ):
        assert cache.find([other]) == [[None]], other


def test_least_recently_used_scores_are_evicted_first():
    cache = ScoreCache(3, Metrics())
    query = Query(prompt="a", responses=("b", "c", "d"))
    cache.store([query], [[score(1), score(2), score(3)]])
    assert cache.find([Query(prompt="a", responses=("b",))]) == [[score(1)]]
    cache.store([Query(prompt="a", responses=("e",))], [[score(4)]])
    assert cache.find([query]) == [[score(1), None, score(3)]]
    cache.store([Query(prompt="x", responses=tuple("abcdefgh"))], [[score(i) for i in range(8)]])
    assert len(cache) == 3


@pytest.mark.parametrize("known", [(), (0,), (1, 4), (0, 1, 2, 3, 4)])
def test_gaps_are_filled_in_order(known):
    queries = [Query(prompt="a", responses=("b", "c")), Query(prompt="d", responses=("e", "f", "g"))]
    scores = [[score(0), score(1)], [score(2), score(3), score(4)]]
    found = [[each if each.reward in known else None for each in row] for row in scores]
    missing = unknown(queries, found)
    assert all(query.responses for query in missing)
    by_text = {
        text: each
        for query, row in zip(queries, scores, strict=True)
        for text, each in zip(query.responses, row, strict=True)
    }
    assert merged(found, [[by_text[text] for text in query.responses] for query in missing]) == scores


def test_it_is_off_by_default():
    metrics = Metrics()
    cache = ScoreCache(ServingConfig().score_cache, metrics)
    query = Query(prompt="a", responses=("b", "c"))
    cache.store([query], [[score(1), score(2)]])
    assert (cache.find([query]), len(cache)) == ([[None, None]], 0)
    assert "dmoerm_score_cache_misses_total 0.0" in metrics.text().decode()
