"""What runs the passes: the model in a thread of the server, or copies of it in processes of their own.

Several processes serve one queue, one pass each at a time. A process that ends, such as one that the system kills for
its memory, is started again, and its pass is scored again.

    server ── (Encoded, tasks) ──▶ pipe ──▶ engine process: load once; score pass by pass
           ◀── scores, or an error ──
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch

from ..chat.encoding import Encoded, Encoder
from ..errors import ServerError
from ..model import DMoERM
from ..model.routing import Known
from ..scores import Score
from .limits import ServingConfig

Load = Callable[..., DMoERM]
"""Returns the model. For engine processes it is picklable and takes `device`: a name, or None for the default one."""
Scores = list[list[Score]]
RunPass = Callable[[Sequence[Encoded], Sequence[str | Known | None]], Scores]
"""Scores encoded queries in one pass; see `DMoERM.score_encoded`."""

_LOG = logging.getLogger("dmoerm.serving")
_ENGINE_LOST = (EOFError, OSError)


class EngineLost(ServerError):
    """The engine's process ended twice during the same pass."""

    def __init__(self) -> None:
        super().__init__("the engine's process ended twice while it scored this text; send shorter texts")


@dataclass(frozen=True)
class ServedModel:
    """What the server needs of a model whose weights are in other processes.

    Attributes:
        config: the model's configuration.
        dtype: of its weights.
        pass_limit: the maximum number of tokens of a pass.
    """

    encoder: Encoder
    config: Any
    dtype: torch.dtype
    pass_limit: int

    @classmethod
    def of(cls, model: DMoERM, settings: ServingConfig) -> ServedModel:
        """Describe a model."""
        return cls(model.encoder, model.config, model.dtype, model.pass_tokens(settings.batch_tokens))


class Engine(Protocol):
    """Runs one pass at a time, in its thread.

    Attributes:
        thread: where `run` is called.
        starts: how often the model has been loaded.
        restarts: whether a device that has failed is reset by a restart of the engine.
    """

    thread: ThreadPoolExecutor
    starts: int
    restarts: bool

    @property
    def run(self) -> RunPass:
        """What scores encoded queries in one pass; raises what the model raises."""
        ...

    async def ready(self) -> None:
        """Return once a pass can run."""
        ...

    def close(self) -> None:
        """End the engine once its current pass is done."""
        ...


class ThreadEngine:
    """The model in a thread of this process."""

    starts, restarts = 1, False

    def __init__(self, model: DMoERM, settings: ServingConfig) -> None:
        self._model, self._deterministic = model, settings.deterministic
        self.thread = ThreadPoolExecutor(1, "engine")

    @property
    def run(self) -> RunPass:
        """The model's own function."""
        return _run_pass(self._model, self._deterministic)

    async def ready(self) -> None:
        """Return at once."""

    def close(self) -> None:
        """End the thread once its current pass is done."""
        self.thread.shutdown(wait=False, cancel_futures=True)


class ProcessEngine:
    """A copy of the model in a process of its own. Only the engine's own thread touches the process.

    Args:
        load: returns the model in the process.
        device: where; None: the default device.
        threads: the process's share of the processor's threads.

    Raises:
        DmoermError: an error of `load`.
    """

    starts, restarts = 0, True

    def __init__(self, load: Load, settings: ServingConfig, device: str | None, threads: int) -> None:
        self._arguments = load, settings, device, threads
        self.thread = ThreadPoolExecutor(1, "engine")
        self.model = self._start()

    @property
    def pid(self) -> int | None:
        """The process's id."""
        return self._process.pid

    async def ready(self) -> None:
        """Return once the process runs; start another if it has ended."""
        while not self._process.is_alive():
            try:
                await asyncio.get_running_loop().run_in_executor(self.thread, self._restart)
            except Exception as error:  # a full device, a file that is gone: other engines go on in the meantime
                _LOG.error("an engine does not start", extra={"error": type(error).__name__})
                await asyncio.sleep(5)

    def close(self) -> None:
        """End the process once its current pass is done."""
        self.thread.submit(self._stop)
        self.thread.shutdown(wait=False)

    # --- in the engine's thread --------------------------------------------------------------------------------

    def run(self, encoded: Sequence[Encoded], tasks: Sequence[str | Known | None]) -> Scores:
        """Score encoded queries in one pass; if the process ends, score them again in another.

        Raises:
            EngineLost: the process ended again.
        """
        for _ in range(2):
            try:
                self._pipe.send((encoded, tasks))
                answer = self._pipe.recv()
            except _ENGINE_LOST:
                self._restart()
            else:
                return _value(answer)
        raise EngineLost

    def _start(self) -> ServedModel:
        context = multiprocessing.get_context("spawn")  # a fork would share CUDA's state and the server's sockets
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, *self._arguments), daemon=True, name="engine")
        self._process.start()
        theirs.close()  # so that the pipe ends with the process
        self.starts += 1
        try:
            answer = self._pipe.recv()
        except _ENGINE_LOST:
            raise ServerError("the engine's process ended while it loaded the model; is there enough memory?") from None
        return _value(answer)

    def _restart(self) -> None:
        self._stop()
        _LOG.error("an engine's process has ended; it is started again", extra={"exit": self._process.exitcode})
        self._start()

    def _stop(self) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.kill()
        self._process.join()


def _value(answer: Any) -> Any:
    """Return what a process has sent, or raise it if it is an error."""
    if isinstance(answer, Exception):
        raise answer
    return answer


def open_engines(load: Load, settings: ServingConfig) -> tuple[DMoERM | ServedModel, list[Engine]]:
    """Load the model into as many engines as the settings say; return what the server needs of it, and the engines.

    Raises:
        DmoermError: an error of `load`.
    """
    count = settings.engines or max(1, len(settings.devices))
    if count == 1 and not settings.devices:
        model = load()
        return model, [ThreadEngine(model, settings)]
    devices = settings.devices or (None,)
    threads = max(1, torch.get_num_threads() // count)
    with ThreadPoolExecutor(count) as pool:  # they load at the same time
        starts = [pool.submit(ProcessEngine, load, settings, devices[i % len(devices)], threads) for i in range(count)]
    engines: list[ProcessEngine] = []
    try:
        engines += [start.result() for start in starts]
    except Exception:
        for start in starts:
            with contextlib.suppress(Exception):
                start.result().close()
        raise
    smallest = min((engine.model for engine in engines), key=lambda model: model.pass_limit)  # devices may differ
    return smallest, [*engines]


def _work(pipe: Connection, load: Load, settings: ServingConfig, device: str | None, threads: int) -> None:
    """Load the model and score what comes through the pipe until the server closes it; the process's main function."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the server ends its engines, after the requests it has accepted
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(threads)
    with contextlib.suppress(*_ENGINE_LOST):
        try:
            model = load(device=device)
            run = _run_pass(model, settings.deterministic)
            pipe.send(ServedModel.of(model, settings))
        except Exception as error:  # whatever a file, a device or a library raises: the server reports it
            pipe.send(_sendable(error))
            return
        while True:
            encoded, tasks = pipe.recv()
            try:
                pipe.send(run(encoded, tasks))
            except Exception as error:  # whatever the model or the device raises: the server scores other requests
                if isinstance(error, torch.OutOfMemoryError):
                    torch.cuda.empty_cache()
                pipe.send(_sendable(error))
                if has_lost_device(error):
                    return


def has_lost_device(error: Exception) -> bool:
    """Whether an error of the device, such as an illegal memory access, fails all later work of the process, too."""
    return isinstance(error, getattr(torch, "AcceleratorError", ())) and not isinstance(error, torch.OutOfMemoryError)


def _run_pass(model: DMoERM, deterministic: bool) -> RunPass:
    return model.score_separately if deterministic else model.score_encoded


def _sendable(error: Exception) -> Exception:
    """Return the error if it survives the pipe, otherwise one with its name."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error may have arguments of any kind
        return ServerError(f"{type(error).__name__} in the engine's process {os.getpid()}")
    return error
