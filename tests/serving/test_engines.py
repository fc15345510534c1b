"""Several engines on one queue: the same scores, none lost with a process that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dmoerm.cli.models import load_model
from dmoerm.errors import CheckpointError
from dmoerm.schema import Query
from dmoerm.serving import ServingConfig
from dmoerm.serving.batcher import Batcher
from dmoerm.serving.engines import EngineLost, ProcessEngine, ServedModel, ThreadEngine, open_engines
from dmoerm.serving.metrics import Metrics
from dmoerm.serving.service import Service
from dmoerm.serving.waiting import Throughput

QUERIES = [Query(prompt=f"What about {i}?", responses=tuple("So. " * (j + i) for j in range(1, 4))) for i in range(12)]


async def while_running(batcher: Batcher, work: Callable[[], Awaitable[Any]]) -> Any:
    """What `work` returns, while the batcher runs."""
    running, working = asyncio.create_task(batcher.run()), asyncio.ensure_future(work())
    done, _ = await asyncio.wait({running, working}, timeout=600, return_when=asyncio.FIRST_COMPLETED)
    assert working in done, running
    running.cancel()
    return working.result()


async def scored(batcher: Batcher) -> list[Any]:
    """The scores of one request per query."""
    results = await asyncio.gather(*(batcher.score([query]) for query in QUERIES))
    return [row for (row,), _ in results]


class HeldEngine(ThreadEngine):
    """Scores once it may; `dead`: it is being started again."""

    def __init__(self, model: Any, meeting: threading.Barrier | None = None, dead: bool = False) -> None:
        super().__init__(model, ServingConfig())
        self.meeting, self.dead, self.passes = meeting, dead, 0

    @property
    def run(self) -> Any:
        def run(encoded: Any, tasks: Any) -> Any:
            self.passes += 1
            if self.meeting is not None and self.passes == 1:
                self.meeting.wait(600)
            return score(encoded, tasks)

        score = super().run
        return run

    async def ready(self) -> None:
        if self.dead:
            await asyncio.Event().wait()


def queue(model: Any, *engines: HeldEngine) -> Batcher:
    return Batcher(model, ServingConfig(batch_tokens=100), Metrics(), engines)


def test_engines_run_passes_at_the_same_time(trained_run: Any) -> None:
    """The first pass of each ends only when the first pass of the other runs."""

    async def run() -> Any:
        meeting = threading.Barrier(2)
        engines = [HeldEngine(trained_run.model, meeting) for _ in range(2)]
        batcher = queue(trained_run.model, *engines)
        return await while_running(batcher, lambda: scored(batcher)), engines

    rows, engines = asyncio.run(run())
    assert all(engine.passes > 1 for engine in engines)
    for row, expected in zip(rows, trained_run.model.score_queries(QUERIES), strict=True):
        assert [s.reward for s in row] == pytest.approx([s.reward for s in expected], abs=1e-5)


def test_an_engine_that_starts_again_holds_up_no_other(trained_run: Any) -> None:
    async def run() -> Any:
        dead, alive = HeldEngine(trained_run.model, dead=True), HeldEngine(trained_run.model)
        batcher = queue(trained_run.model, dead, alive)
        return await while_running(batcher, lambda: scored(batcher)), dead

    rows, dead = asyncio.run(run())
    assert len(rows) == len(QUERIES)
    assert dead.passes == 0


class FailingEngine(HeldEngine):
    """Its device fails in the second pass (after `warm` or the first requests), and in all later ones."""

    @property
    def run(self) -> Any:
        def run(encoded: Any, tasks: Any) -> Any:
            if self.passes > 0:
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700)
            return score(encoded, tasks)

        score = super().run
        return run


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="this version of torch has no such error")
def test_a_device_that_has_failed_ends_the_queue(trained_run: Any) -> None:
    """All later work of the process would fail, too, while /ready says 200."""

    async def run() -> list[Any]:
        batcher = queue(trained_run.model, FailingEngine(trained_run.model))
        requests = [asyncio.create_task(batcher.score([query])) for query in QUERIES]
        with pytest.raises(ExceptionGroup) as error:
            await batcher.run()
        assert "illegal memory access" in str(error.value.exceptions[0])
        return await asyncio.gather(*requests, return_exceptions=True)

    answers = asyncio.run(run())
    assert "cannot score any more" in str(answers[-1])


def test_a_restart_is_no_slow_pass(trained_run: Any) -> None:
    """The rate that refuses requests is that of passes alone."""

    class Restarting(HeldEngine):
        starts = 1  # pyright: ignore[reportIncompatibleVariableOverride]

        @property
        def run(self) -> Any:
            def run(encoded: Any, tasks: Any) -> Any:
                if self.passes == 2:
                    self.starts += 1
                    time.sleep(1)
                return score(encoded, tasks)

            score = super().run
            return run

    async def run() -> float:
        batcher = queue(trained_run.model, Restarting(trained_run.model))
        counted = []
        add = batcher.throughput.add
        batcher.throughput.add = lambda tokens, seconds: (counted.append(seconds), add(tokens, seconds))[1]
        await while_running(batcher, lambda: scored(batcher))
        assert len(counted) > 3
        return max(counted)

    assert asyncio.run(run()) < 1


@pytest.mark.parametrize("at", ["while it loads", "in its first pass"])
def test_engines_of_a_server_that_does_not_start_are_closed(
    trained_run: Any, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Otherwise their processes hold the devices, and the server's process cannot end."""
    closed, loading, may_load = threading.Event(), threading.Event(), threading.Event()

    class Closable(HeldEngine):
        def close(self) -> None:
            closed.set()
            super().close()

        @property
        def run(self) -> Any:
            return super().run if at == "while it loads" else None  # cannot be called

    def opened(*_: Any) -> Any:
        loading.set()
        may_load.wait(60)
        return trained_run.model, [Closable(trained_run.model)]

    async def start() -> Service:
        service = Service(lambda: trained_run.model, "m", ServingConfig())
        async with service.running():
            while not loading.is_set():
                await asyncio.sleep(0.001)
            if at != "while it loads":
                may_load.set()
                with pytest.raises(TypeError):
                    await service.loaded()
            else:
                asyncio.get_running_loop().call_later(0.1, may_load.set)
        return service

    monkeypatch.setattr("dmoerm.serving.service.open_engines", opened)
    service = asyncio.run(start())
    assert closed.is_set()
    assert b"dmoerm_queue_requests 0.0" in service.metrics.text()


def test_two_engines_need_half_the_time() -> None:
    one, two = Throughput(1), Throughput(2)
    for throughput in (one, two):
        throughput.add(100, 1.0)
    assert one.seconds_for(1000) == pytest.approx(10)
    assert two.seconds_for(1000) == pytest.approx(5)
    assert two.total_rate == pytest.approx(200)
    with two.measured(10_000), two.measured(10_000):
        assert two.seconds_for(0) == pytest.approx(100, abs=1)
    assert two.seconds_for(0) == 0


@contextlib.contextmanager
def processes(folder: Path, **settings: Any) -> Iterator[tuple[ServedModel, list[ProcessEngine]]]:
    model, engines = open_engines(functools.partial(load_model, str(folder)), ServingConfig(**settings))
    try:
        yield model, engines  # pyright: ignore[reportReturnType]
    finally:
        for engine in engines:
            engine.close()


@pytest.mark.slow
def test_processes_give_the_same_scores_and_survive_kills(trained_run: Any) -> None:
    """To the last bit: each response in a pass of its own, one thread each. A killed engine's pass is scored again."""
    folder = trained_run.folder / "model"
    with processes(folder, engines=2, deterministic=True, batch_tokens=100) as (model, engines):
        settings = ServingConfig(deterministic=True, batch_tokens=100)
        batcher = Batcher(model, settings, Metrics(), engines)
        plain = list(trained_run.model.score_queries(QUERIES, deterministic=True))
        assert asyncio.run(while_running(batcher, lambda: scored(batcher))) == plain

        alone = Batcher(model, settings, Metrics(), engines[:1])  # so that this engine takes the passes

        async def kill_in_a_pass() -> Any:
            killed = engines[0].pid
            os.kill(killed, signal.SIGSTOP)  # it takes a pass and does not answer
            taken, run = threading.Event(), engines[0].run
            engines[0].run = lambda encoded, tasks: (taken.set(), run(encoded, tasks))[1]
            scoring = asyncio.create_task(scored(alone))
            await asyncio.to_thread(taken.wait, 600)
            os.kill(killed, signal.SIGKILL)
            return await scoring, killed

        rows, killed = asyncio.run(while_running(alone, kill_in_a_pass))
        assert rows == plain
        assert engines[0].pid != killed

        async def kill_while_idle() -> None:
            killed = engines[1].pid
            os.kill(killed, signal.SIGKILL)
            while engines[1].pid == killed:
                await asyncio.sleep(0.05)

        idle = Batcher(model, settings, Metrics(), engines)
        asyncio.run(while_running(idle, kill_while_idle))  # nobody asks for a score


@pytest.mark.slow
def test_a_model_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a dmoerm model"), processes(tmp_path, engines=2):
        pass


@pytest.mark.slow
def test_a_text_that_ends_every_process_fails_alone(trained_run: Any, tmp_path: Path) -> None:
    deadly = Query(prompt="deadly", responses=("word",))
    load = functools.partial(load_deadly, str(trained_run.folder / "model"))
    settings = ServingConfig(engines=1, devices=("cpu",))
    model, engines = open_engines(load, settings)
    batcher = Batcher(model, settings, Metrics(), engines)

    async def work() -> Any:
        return await asyncio.gather(
            batcher.score([deadly]), *(batcher.score([query]) for query in QUERIES[:2]), return_exceptions=True
        )

    failed, *rest = asyncio.run(while_running(batcher, work))
    batcher.close()
    assert str(failed) == str(EngineLost())
    assert [len(rows) for rows, _ in rest] == [1, 1]


def load_deadly(folder: str, device: str | None = None) -> Any:
    """A model whose process ends at a certain prompt, as if the system had killed it for its memory."""
    model = load_model(folder, device=device)
    key = model.encoder.encode(Query(prompt="deadly", responses=("word",))).prompt_key
    score = model.score_encoded

    def scoring(encoded: Any, tasks: Any) -> Any:
        if any(each.prompt_key == key for each in encoded):
            os.kill(os.getpid(), signal.SIGKILL)
        return score(encoded, tasks)

    model.score_encoded = scoring
    return model
