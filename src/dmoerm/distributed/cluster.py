"""The connection to a Ray cluster, and what went wrong on it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from ..errors import ClusterError, ConfigError, DmoermError

_PATIENCE = 10  # seconds


def import_ray() -> Any:
    """The package ray. Raises `ConfigError` where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when a cluster starts: nothing is sent anywhere
    try:
        import ray
    except ImportError:
        raise ConfigError("--engine ray needs the package ray: pip install 'dmoerm[ray]'") from None
    return ray


@contextlib.contextmanager
def cluster(address: str | None = None) -> Iterator[Any]:
    """The package ray, connected; at the end the connection is closed, unless it was there before.

    Args:
        address: of the cluster; None: that of the environment variable RAY_ADDRESS, else one starts on this machine.

    Raises:
        ConfigError: ray is not installed.
        ClusterError: the cluster cannot be reached, or lost what ran on it; errors that a worker raised on purpose are
            raised as they are.
    """
    ray = import_ray()
    ours = not ray.is_initialized()
    try:
        if ours:
            _connect(ray, address)
        yield ray
    except ray.exceptions.RayError as error:
        raise _told(error) from error
    finally:
        if ours:
            ray.shutdown()


def room(ray: Any, cpus: float, gpus: float) -> int:
    """How many tasks or actors that ask for so much the cluster has room for; one at least."""
    whole = ray.cluster_resources()
    asked = {"CPU": cpus, "GPU": gpus}
    return max(1, min((int(whole.get(name, 0) / need) for name, need in asked.items() if need), default=1))


def _connect(ray: Any, address: str | None) -> None:
    try:
        _knock(address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise ClusterError(f"Ray cluster {address or 'here'}: {error}; correct ray.address, or start it") from error


def _knock(address: str) -> None:
    """Raises `OSError` where nobody listens at HOST:PORT; by itself, Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), _PATIENCE).close()


def _told(error: Any) -> Exception:
    cause = getattr(error, "cause", None)
    if isinstance(cause, DmoermError):
        return cause
    if cause is not None:
        return error  # a fault in our code: its traceback is what helps
    reason = " ".join(str(error).split())[:300]
    return ClusterError(f"the cluster lost what ran on it: {reason}; run again: what is finished is not done again")
