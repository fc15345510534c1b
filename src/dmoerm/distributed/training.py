"""Run the training graph on Ray: each step is a task that starts when the tasks it depends on have finished.

A worker rebuilds the run, loads the results of those steps from the run's folder, which all workers share, and trains
its own step. If the worker or its node is lost, Ray restarts the task on another worker, and the step resumes from its
last checkpoint. With `ray.workers_per_step`, the task has Ray Train start that many workers, which train the step as
the processes of `accelerate launch` do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import Config, changed
from ..data.splits import Splits
from ..errors import ClusterError, DmoermError
from ..training.cache import Texts
from ..training.processes import TIMEOUT
from ..training.run import Step, check_batches, graph, path_to, prepare, run_steps
from ..training.steps import Progress, Run, StepMetrics
from .cluster import cluster, worker_slots

_MIN_SHARE = 256  # groups; fewer are not worth a worker of their own


def on_ray(run: Run, data: Splits, steps: Sequence[Step]) -> None:
    """Train the unfinished steps on the cluster at `ray.address`; an `Engine`.

    Raises:
        ConfigError: ray is not installed, or a pass has fewer groups than a step has workers.
        ClusterError: the cluster cannot be reached, or a step was lost more than `ray.retries` times.
    """
    settings = run.config.ray
    if settings.gpus >= 2:
        hint = f"set ray.gpus to 1 and ray.workers_per_step to {settings.gpus:g}"
        run.progress.say(f"ray.gpus is {settings.gpus:g}, but a worker uses one GPU; {hint}")
    check_batches(run.config, settings.workers_per_step)
    with cluster(settings.address) as ray:
        names = _submit(ray, run, data, steps)
        waiting = list(names)
        while waiting:
            (ended,), waiting = ray.wait(waiting, num_returns=1)
            figures: StepMetrics = ray.get(ended)  # raises what the worker has raised
            summary = "  ".join(f"{name} {figures[name]:.3f}" for name in ("loss", "accuracy") if name in figures)
            run.progress.skip(names[ended], f"{summary}  {figures['seconds']:.1f} s")


def _submit(ray: Any, run: Run, data: Splits, steps: Sequence[Step]) -> dict[Any, str]:
    """Submit a task for each unfinished step; return reference → step name."""
    settings, config = run.config.ray, reachable(run.config)
    remote = ray.remote(num_cpus=settings.cpus, num_gpus=settings.gpus, max_retries=settings.retries)
    # A group's task waits for its workers and needs no processor itself.
    group = ray.remote(num_cpus=0, max_retries=settings.retries, retry_exceptions=[_WorkerLost])(do_step_in_group)
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
        train = remote(do_step) if settings.workers_per_step == 1 else group
        references[step.name] = train.options(name=step.name).remote(config, shared, step.name, *needed)
    return {reference: name for name, reference in references.items()}


def fill_share(config: Config, data: Splits, share: int, of: int) -> None:
    """Compute a share of the trunk's activations in a worker and store them in the cache, shared where possible."""
    run = _prepared(config, data)
    examples = run.examples(data.train[share::of])
    run.cache.fill(Texts(lambda i: examples[i].encoded, range(len(examples))))


def do_step(config: Config, data: Splits, name: str, *_needed: StepMetrics | None) -> StepMetrics:
    """Train one step in a worker and return its metrics. Ray waits for the results of the tasks `_needed`."""
    run = _prepared(config, data)
    run_steps(run, data, path_to(name, graph(config, data.taxonomy)))
    return run.metrics()[name]


class _WorkerLost(ClusterError):
    """A worker of a group ended; the step can be trained again."""


def do_step_in_group(config: Config, data: Splits, name: str, *_needed: StepMetrics | None) -> StepMetrics:
    """Train one step in `ray.workers_per_step` processes on one machine and return its metrics. See `do_step`."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    settings, shared = config.ray, ray.put(data)
    with tempfile.TemporaryDirectory() as folder:  # Ray Train's own records; the step's files are in the run's folder
        trainer = TorchTrainer(
            lambda: do_step(config, ray.get(shared), name),
            torch_config=TorchConfig(timeout_s=int(TIMEOUT.total_seconds())),
            scaling_config=ScalingConfig(
                num_workers=settings.workers_per_step,
                use_gpu=settings.gpus > 0,
                resources_per_worker={"CPU": settings.cpus, "GPU": settings.gpus},
                placement_strategy="STRICT_PACK",
            ),
            run_config=RunConfig(name=name.replace("/", "-"), storage_path=folder),
        )
        try:
            metrics: Any = trainer.fit().return_value  # the main process's
            return metrics
        except TrainingFailedError as error:
            raise _cause(error, name) from error


def _cause(error: Any, name: str) -> Exception:
    """Return the error that a worker has raised, or one that says that a worker was lost."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        if isinstance(failure, DmoermError | torch.OutOfMemoryError):
            return failure
    # the loss of one worker is Ray's own error, and a RuntimeError of torch.distributed in the others
    bugs = [f for f in failures if not (isinstance(f, RuntimeError) or type(f).__module__.startswith("ray."))]
    if bugs:
        return bugs[0]
    reason = " ".join(str(error).split())[:300]
    return _WorkerLost(f"step {name}: a worker was lost: {reason}; run the command again to resume")


def _prepared(config: Config, data: Splits) -> Run:
    return prepare(config, data.taxonomy, Path(config.output), Progress(quiet=True))


def reachable(config: Config) -> Config:
    """Return the settings with absolute paths, because a worker runs in another folder."""
    paths = {name: getattr(config, name) for name in ("output", "cache")}
    if Path(config.backbone.path).exists():  # else it is a name on the hub
        paths["backbone.path"] = config.backbone.path
    local = {name: path for name, path in paths.items() if path and "://" not in path}
    return changed(config, {name: str(Path(path).absolute()) for name, path in local.items()})
