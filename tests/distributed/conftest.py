"""A Ray cluster of two nodes on this machine, and a way to see and to kill what runs on one of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

STORE = 100_000_000  # bytes of a node's object store


class Nodes:
    """The cluster; this process is connected to it."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.address: str = cluster.address
        self.second = self.add()

    def add(self) -> Any:
        """A node of one processor, beside the first."""
        node = self.cluster.add_node(num_cpus=1, object_store_memory=STORE)
        self.cluster.wait_for_nodes()
        return node

    def kill(self, node: Any) -> None:
        """All processes of the node, at once."""
        self.cluster.remove_node(node, allow_graceful=False)

    def running(self, title: str, node: Any = None) -> list[int]:
        """The workers, of a node or of all, that are at a task whose name begins so."""
        nodes = [node] if node else self.cluster.list_all_nodes()
        raylets = {info.process.pid for node in nodes for info in node.all_processes["raylet"]}
        return [pid for pid, parent, name in _processes() if parent in raylets and name.startswith(f"ray::{title}")]


def _processes() -> Iterator[tuple[int, int, str]]:
    """Each process with its parent and its title."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            yield int(path.name), parent, (path / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue


def wait_until(true: Callable[[], Any], what: str, seconds: float = 600) -> Any:
    """What `true` returns, once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := true():
            return result
        time.sleep(0.05)
    raise AssertionError(f"after {seconds} s: {what}")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes of one processor each."""
    ray = pytest.importorskip("ray", reason="ray is not installed; run: make install")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    first = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=first)
    result = Nodes(cluster)
    ray.init(address=cluster.address, log_to_driver=False)
    yield result
    ray.shutdown()
    cluster.shutdown()
