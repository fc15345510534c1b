"""The training graph on Ray: a step is a task, which Ray begins once the tasks of the steps that it needs have ended.

A worker builds the run anew, puts in place what those steps have left on the storage, and does its own. If it or its
node is lost, Ray begins the task again elsewhere, and the step goes on from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import Config, changed
from ..data.splits import Splits
from ..training.graph import Step, graph, path_to
from ..training.progress import Progress
from ..training.run import examples_of, prepare, prepare_examples
from ..training.steps import Ended, Run
from .cluster import cluster, room

_SHARE = 256  # fewest groups whose activations are worth a worker of their own


def on_ray(run: Run, data: Splits, steps: Sequence[Step]) -> None:
    """Does the steps that are not finished on the cluster of `ray.address`; an `Engine`.

    Raises:
        ConfigError: ray is not installed.
        ClusterError: there is no such cluster, or a step was lost more often than `ray.retries`.
    """
    if run.config.ray.gpus >= 2:
        run.progress.say(f"ray.gpus is {run.config.ray.gpus:g}, but a step uses one GPU; set ray.gpus to 1")
    with cluster(run.config.ray.address) as ray:
        _follow(ray, run, _submit(ray, run, data, steps))


def _submit(ray: Any, run: Run, data: Splits, steps: Sequence[Step]) -> dict[Any, str]:
    """Reference → name of each step's task."""
    settings, config = run.config.ray, reachable(run.config)
    remote = ray.remote(num_cpus=settings.cpus, num_gpus=settings.gpus, max_retries=settings.retries)
    shared = ray.put(data)  # so that the data's files need be on this machine alone
    shares = min(room(ray, settings.cpus, settings.gpus), len(data.train) // _SHARE)
    found: dict[str, Any] = {}
    filled: list[Any] = []
    for step in steps:
        if run.finished(step.name):
            run.progress.skip(step.name)
            continue
        if shares > 1 and not filled:
            fill = remote(fill_share)
            filled = [fill.options(name=f"activations/{i}").remote(config, shared, i, shares) for i in range(shares)]
        needed = [found[name] for name in step.needs if name in found] or filled
        found[step.name] = remote(do_step).options(name=step.name).remote(config, shared, step.name, *needed)
    return {reference: name for name, reference in found.items()}


def _follow(ray: Any, run: Run, names: Mapping[Any, str]) -> None:
    """Tells of each step as it ends. Raises what the first one raised that failed."""
    waiting = list(names)
    while waiting:
        (ended,), waiting = ray.wait(waiting, num_returns=1)
        figures: Ended = ray.get(ended)
        told = "  ".join(f"{name} {figures[name]:.3f}" for name in ("loss", "consistency") if name in figures)
        run.progress.skip(names[ended], f"{told}  {figures['seconds']:.1f} s")


def fill_share(config: Config, data: Splits, share: int, of: int) -> None:
    """In a worker: computes a share of the trunk's activations, into a cache that, at best, all machines reach."""
    with _prepared(config, data) as run:
        run.cache.fill([example.encoded for example in examples_of(run, data.train[share::of])])


def do_step(config: Config, data: Splits, name: str, *_needed: Ended | None) -> Ended:
    """In a worker: does one step, and says how it ended.

    Args:
        _needed: what the tasks that it needs returned; Ray waits for them.
    """
    with _prepared(config, data) as run:
        training = prepare_examples(run, data)
        for step in path_to(name, graph(config, data.taxonomy)):
            step.do(training)
        return run.metrics()[name]


@contextlib.contextmanager
def _prepared(config: Config, data: Splits) -> Iterator[Run]:
    """The run on a worker; with a storage, what this machine has of its folder is a copy."""
    place = contextlib.nullcontext(config.output) if config.storage is None else tempfile.TemporaryDirectory()
    with place as folder:
        yield prepare(config, data.taxonomy, Path(folder), Progress(quiet=True))


def reachable(config: Config) -> Config:
    """The settings with absolute paths: a worker runs in another folder."""
    places = {name: getattr(config, name) for name in ("output", "cache", "storage")}
    places["backbone.path"] = config.backbone.path
    made = {name: str(Path(place).absolute()) for name, place in places.items() if place and _is_local(name, place)}
    return changed(config, made)


def _is_local(name: str, place: str) -> bool:
    return "://" not in place and (name != "backbone.path" or Path(place).exists())
