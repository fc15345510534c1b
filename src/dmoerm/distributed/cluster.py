"""Connect to a Ray cluster and translate its errors."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from ..errors import ClusterError, ConfigError, DmoermError


def import_ray() -> Any:
    """Import and return the package ray. Raises `ConfigError` if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when a cluster starts; no usage statistics are sent
    try:
        import ray
    except ImportError:
        raise ConfigError("--engine ray needs the package ray: pip install '.[ray]' in dmoerm's folder") from None
    return ray


@contextlib.contextmanager
def cluster(address: str | None = None) -> Iterator[Any]:
    """Connect to a cluster and yield the package ray; close the connection on exit unless it existed before.

    Args:
        address: the cluster's address; None: the environment variable RAY_ADDRESS, else a new cluster on this machine.

    Raises:
        ConfigError: ray is not installed.
        ClusterError: the cluster cannot be reached, or it lost a worker. A worker's `DmoermError` is raised unchanged.
    """
    ray = import_ray()
    ours = not ray.is_initialized()
    try:
        if ours:
            _connect(ray, address)
        yield ray
    except ray.exceptions.RayError as error:
        raise _translated(error) from error
    finally:
        if ours:
            ray.shutdown()


def worker_slots(ray: Any, cpus: float, gpus: float) -> int:
    """Return how many tasks or actors with these requirements fit on the cluster at once, at least 1."""
    resources = ray.cluster_resources()
    required = {"CPU": cpus, "GPU": gpus}
    return max(1, min((int(resources.get(name, 0) / need) for name, need in required.items() if need), default=1))


def _connect(ray: Any, address: str | None) -> None:
    address = address or os.environ.get("RAY_ADDRESS") or "local"  # None joins any cluster of this machine
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit() and "/" not in host:  # Ray itself would retry for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        cluster_name = "Ray on this machine" if address == "local" else f"Ray cluster {address}"
        raise ClusterError(f"{cluster_name}: {error}; correct ray.address or start the cluster") from error


def _translated(error: Any) -> Exception:
    cause = getattr(error, "cause", None)
    if isinstance(cause, DmoermError):
        return cause
    if cause is not None:
        return error  # a bug in our code: the traceback helps
    reason = " ".join(str(error).split())[:300]
    return ClusterError(f"a running task was lost: {reason}; run the command again to resume")
