"""Run the training graph on Ray: each step is a task that starts when the tasks it depends on have finished.

A worker rebuilds the run, loads the results of those steps from the storage and trains its own step. If the worker or
its node is lost, Ray restarts the task on another worker, and the step resumes from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import Config, changed
from ..data.splits import Splits
from ..training.examples import Texts, examples_of
from ..training.graph import Step, graph, path_to
from ..training.progress import Progress
from ..training.run import prepare, run_steps
from ..training.steps import Run, StepMetrics
from .cluster import cluster, worker_slots

_MIN_SHARE = 256  # groups; fewer are not worth a worker of their own


def on_ray(run: Run, data: Splits, steps: Sequence[Step]) -> None:
    """Train the unfinished steps on the cluster at `ray.address`; an `Engine`.

    Raises:
        ConfigError: ray is not installed.
        ClusterError: the cluster cannot be reached, or a step was lost more than `ray.retries` times.
    """
    if run.config.ray.gpus >= 2:
        run.progress.say(f"ray.gpus is {run.config.ray.gpus:g}, but a step uses one GPU; set ray.gpus to 1")
    with cluster(run.config.ray.address) as ray:
        _follow(ray, run, _submit(ray, run, data, steps))


def _submit(ray: Any, run: Run, data: Splits, steps: Sequence[Step]) -> dict[Any, str]:
    """Submit a task for each unfinished step; return reference → step name."""
    settings, config = run.config.ray, reachable(run.config)
    remote = ray.remote(num_cpus=settings.cpus, num_gpus=settings.gpus, max_retries=settings.retries)
    shared = ray.put(data)  # the data files are needed on this machine only
    shares = min(worker_slots(ray, settings.cpus, settings.gpus), len(data.train) // _MIN_SHARE)
    references: dict[str, Any] = {}
    filled: list[Any] = []
    for step in steps:
        if run.finished(step.name):
            run.progress.skip(step.name)
            continue
        if shares > 1 and not filled:
            fill = remote(fill_share)
            filled = [fill.options(name=f"activations/{i}").remote(config, shared, i, shares) for i in range(shares)]
        needed = [references[name] for name in step.needs if name in references] or filled
        references[step.name] = remote(do_step).options(name=step.name).remote(config, shared, step.name, *needed)
    return {reference: name for name, reference in references.items()}


def _follow(ray: Any, run: Run, names: Mapping[Any, str]) -> None:
    """Report each step when it finishes. Raises the error of the first step that fails."""
    waiting = list(names)
    while waiting:
        (ended,), waiting = ray.wait(waiting, num_returns=1)
        figures: StepMetrics = ray.get(ended)
        summary = "  ".join(f"{name} {figures[name]:.3f}" for name in ("loss", "accuracy") if name in figures)
        run.progress.skip(names[ended], f"{summary}  {figures['seconds']:.1f} s")


def fill_share(config: Config, data: Splits, share: int, of: int) -> None:
    """Compute a share of the trunk's activations in a worker and store them in the cache, shared where possible."""
    with _prepared(config, data) as run:
        run.cache.fill(Texts(examples_of(run, data.train[share::of])))


def do_step(config: Config, data: Splits, name: str, *_needed: StepMetrics | None) -> StepMetrics:
    """Train one step in a worker and return its metrics.

    Args:
        _needed: results of the tasks that the step depends on; Ray waits for them.
    """
    with _prepared(config, data) as run:
        run_steps(run, data, path_to(name, graph(config, data.taxonomy)))
        return run.metrics()[name]


@contextlib.contextmanager
def _prepared(config: Config, data: Splits) -> Iterator[Run]:
    """Prepare the run on a worker; with a storage, its folder on this machine is a temporary copy."""
    output = contextlib.nullcontext(config.output) if config.storage is None else tempfile.TemporaryDirectory()
    with output as folder:
        yield prepare(config, data.taxonomy, Path(folder), Progress(quiet=True))


def reachable(config: Config) -> Config:
    """Return the settings with absolute paths, because a worker runs in another folder."""
    paths = {name: getattr(config, name) for name in ("output", "cache", "storage")}
    paths["backbone.path"] = config.backbone.path
    absolute = {name: str(Path(path).absolute()) for name, path in paths.items() if path and _is_local(name, path)}
    return changed(config, absolute)


def _is_local(name: str, path: str) -> bool:
    return "://" not in path and (name != "backbone.path" or Path(path).exists())
