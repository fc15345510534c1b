"""Several models behind one application: which one a request gets, and what becomes of a model that is dropped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import Request
from running import served
from tiny import make_model, make_tiny_config

import dmoerm
from dmoerm.errors import CheckpointError, ServerError
from dmoerm.serving import ServingConfig
from dmoerm.serving.app import create_app_of
from dmoerm.serving.model_pool import LoadedModel, ModelPool, Open, PooledModel

PROMPT, RESPONSES = "Hey, my dog is afraid.", ["Poor thing!", "A dog is a mammal."]


def keep_one(load: Open) -> Open:
    """Keep the last model, as Ray Serve does with at most one."""
    kept: dict[str, LoadedModel] = {}
    lock = asyncio.Lock()

    async def find(name: str) -> LoadedModel:
        async with lock:
            if name not in kept:
                for dropped in [*kept]:
                    await kept.pop(dropped).close()
                kept[name] = await load(name)
            return kept[name]

    return find


@pytest.fixture(scope="module")
def loads() -> list[str]:
    """The names of the models that were loaded, in order."""
    return []


@pytest.fixture(scope="module")
def models(trained_run: Any, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two models of different rewards."""
    random = make_model(make_tiny_config(tiny_backbone, tmp_path_factory.mktemp("random")))
    return {"first": trained_run.model, "second": random}


@pytest.fixture(scope="module")
def pool(models: dict[str, Any], loads: list[str]) -> ModelPool:
    def load(name: str) -> Callable[[], Any]:
        def loaded() -> Any:
            loads.append(name)
            if name == "broken":
                raise CheckpointError("a file is truncated")
            return models[name]

        return loaded

    config = models["first"].config
    named = {name: PooledModel(load(name), config) for name in ("first", "second", "broken")}
    return ModelPool(named, ServingConfig(), keep_one)


@pytest.fixture(scope="module")
def url(pool: ModelPool) -> Iterator[str]:
    with served(create_app_of(pool)) as url:
        yield url


def rewards(scores: Any) -> Any:
    return pytest.approx([score.reward for score in scores], abs=1e-4)


@pytest.fixture(scope="module")
def expected(models: dict[str, Any]) -> dict[str, Any]:
    """Name → the model's own rewards."""
    result = {name: rewards(model.score(PROMPT, RESPONSES)) for name, model in models.items()}
    assert result["first"].expected != result["second"]
    return result


def ask(url: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> httpx2.Response:
    items = [{"prompt": PROMPT, "responses": RESPONSES}]
    return httpx2.post(f"{url}/v1/score", json={"items": items, **(body or {})}, headers=headers, timeout=60)


@pytest.mark.parametrize(
    ("body", "headers", "name"),
    [
        ({}, {}, "first"),
        ({"model": "second"}, {}, "second"),
        ({"model": "first"}, {"serve_multiplexed_model_id": "second"}, "second"),
        ({}, {"Serve-Multiplexed-Model-Id": "second"}, "second"),
    ],
)
def test_the_header_or_the_body_names_the_model(
    url: str, expected: dict[str, Any], body: dict[str, Any], headers: dict[str, str], name: str
) -> None:
    answer = ask(url, body, headers).json()
    assert [score["reward"] for score in answer["items"][0]["scores"]] == expected[name]
    assert answer["model"] == name


def test_other_protocols_name_the_model_too(url: str, expected: dict[str, Any]) -> None:
    body = {"model": "second", "text_1": [PROMPT] * 2, "text_2": RESPONSES}
    answer = httpx2.post(f"{url}/score", json=body, timeout=60).json()
    assert [row["score"] for row in answer["data"]] == expected["second"]


def test_the_clients_send_the_name(url: str, expected: dict[str, Any]) -> None:
    with dmoerm.Client(url, model="second") as client:
        assert [score.reward for score in client.score(PROMPT, RESPONSES)] == expected["second"]
        assert client.tasks() == client.models()["first"]


def test_all_models_are_listed_and_none_is_loaded_for_it(url: str, models: dict[str, Any], loads: list[str]) -> None:
    before = [*loads]
    cards = httpx2.get(f"{url}/v1/models", timeout=60).json()["data"]
    assert [card["id"] for card in cards] == ["first", "second", "broken"]
    assert cards[1]["max_model_len"] == models["second"].encoder.max_length
    assert loads == before


def test_a_model_that_does_not_exist_or_cannot_be_loaded(url: str, expected: dict[str, Any]) -> None:
    answer = ask(url, {"model": "third"})
    assert answer.status_code == 404
    assert "'third'; use one of first, second, broken" in answer.json()["error"]["message"]
    answer = ask(url, {"model": "broken"})
    assert answer.status_code == 500
    assert "broken cannot be loaded" in answer.json()["error"]["message"]
    assert "truncated" not in answer.text
    assert ask(url, {"model": "second"}).json()["model"] == "second"


def test_a_broken_model_costs_the_others_their_place_only_once_a_minute(
    pool: ModelPool, url: str, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(url, {"model": "broken"})
    ask(url, {"model": "second"})
    before = [*loads]
    assert ask(url, {"model": "broken"}).status_code == 500
    assert ask(url, {"model": "second"}).status_code == 200
    assert loads == before
    monkeypatch.setitem(pool._broken, "broken", 0.0)  # a minute later
    assert ask(url, {"model": "broken"}).status_code == 500
    assert loads == [*before, "broken"]


def test_requests_that_wait_for_a_broken_model_do_not_try_it_again(pool: ModelPool, loads: list[str]) -> None:
    async def ask_together() -> list[Any]:
        asked = ModelPool(pool.models, ServingConfig(), keep_one)
        return await asyncio.gather(*(asked._enter("broken") for _ in range(4)), return_exceptions=True)

    before = loads.count("broken")
    assert {type(answer) for answer in asyncio.run(ask_together())} == {ServerError}
    assert loads.count("broken") == before + 1


def test_the_metrics_tell_what_is_in_memory(url: str) -> None:
    def values() -> list[float]:
        lines = httpx2.get(f"{url}/metrics", timeout=60).text.splitlines()
        read = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return [float(read[f"dmoerm_{name}"]) for name in ("models", "model_loads_total", "queue_requests")]

    ask(url, {"model": "first"})
    _, loads, _ = values()
    ask(url, {"model": "second"})
    ask(url, {"model": "second"})
    assert values() == [1, loads + 1, 0]


def test_a_dropped_model_answers_its_requests_first(pool: ModelPool) -> None:
    ended: list[str] = []

    async def drop() -> None:
        stack = contextlib.AsyncExitStack()
        stack.callback(ended.append, "closed")
        model = LoadedModel(pool, stack)  # type: ignore[arg-type]
        model.enter()
        closing = asyncio.create_task(model.close())
        for _ in range(10):
            await asyncio.sleep(0)
        ended.append("answered")
        model.leave()
        await closing

    asyncio.run(drop())
    assert ended == ["answered", "closed"]


def test_a_client_that_leaves_during_the_load_does_not_hold_the_model(models: dict[str, Any]) -> None:
    """Otherwise the model could never be dropped."""

    async def leave() -> bool:
        begun, goes_on = asyncio.Event(), asyncio.Event()

        def keep(load: Open) -> Open:
            async def find(name: str) -> LoadedModel:
                begun.set()
                await goes_on.wait()
                found.append(await load(name))
                return found[0]

            return find

        found: list[LoadedModel] = []
        one = {"first": PooledModel(lambda: models["first"], models["first"].config)}
        pool = ModelPool(one, ServingConfig(), keep)
        request: Any = Request({"type": "http", "method": "GET", "headers": [], "path": "/info"})
        async with pool.running():
            using = asyncio.create_task(pool.using(request).__aenter__())
            await begun.wait()
            using.cancel()
            await asyncio.wait([using])
            goes_on.set()
            await pool.loaded()
        return using.cancelled()  # `running` has ended: no request held the model

    assert asyncio.run(asyncio.wait_for(leave(), 60))


def test_the_first_model_must_load(models: dict[str, Any]) -> None:
    def fail() -> Any:
        raise CheckpointError("a file is truncated")

    pool = ModelPool({"broken": PooledModel(fail, models["first"].config)}, ServingConfig(), keep_one)
    with pytest.raises(ServerError, match="broken cannot be loaded") as error:
        asyncio.run(pool.loaded())
    assert isinstance(error.value.__cause__, CheckpointError)
