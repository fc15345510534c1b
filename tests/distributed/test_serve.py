"""The reward server on Ray Serve: its settings, and a replica that is killed under load."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from running import Load, free_port

from dmoerm.distributed.serve import ReplicaSettings, app
from dmoerm.errors import ConfigError

from .conftest import Nodes, wait_until


def test_the_arguments_become_the_options_of_the_deployment() -> None:
    """`serve run` passes texts."""
    settings = ReplicaSettings.model_validate(
        {"model": "m", "max_replicas": "3", "target_requests": "8", "gpus": "0.5"}
    )
    options = settings.deployment()
    assert options["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 8.0}
    assert options["ray_actor_options"] == {"num_cpus": 1.0, "num_gpus": 0.5}


def test_invalid_arguments_are_named() -> None:
    pytest.importorskip("ray.serve", reason="ray[serve] is not installed; run: make install")
    with pytest.raises(ConfigError, match="max_replicas"):
        app({"model": "m", "max_replicas": 0})
    with pytest.raises(ConfigError, match="model"):
        app({})


@pytest.mark.slow
def test_a_killed_replica_loses_no_request(nodes: Nodes, trained_run: Any) -> None:
    serve = pytest.importorskip("ray.serve", reason="ray[serve] is not installed; run: make install")
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        arguments = {"model": str(trained_run.folder), "min_replicas": 2, "max_replicas": 2, "cpus": 0.5}
        serve.run(app(arguments))
        with Load(f"http://127.0.0.1:{port}") as load:
            load.more()
            first, _ = replicas = nodes.running("ServeReplica")
            os.kill(first, signal.SIGKILL)
            load.more()
            wait_until(lambda: len(set(nodes.running("ServeReplica")) - set(replicas)) == 1, "no new replica")
            load.more()
        load.check(trained_run.model)
    finally:
        serve.shutdown()
