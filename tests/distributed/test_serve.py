"""The reward server on Ray Serve: its settings, its answers, a killed replica, a broken model."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from running import Load, free_port, served

import dmoerm
from dmoerm.distributed.serve import ReplicaSettings, app
from dmoerm.errors import ConfigError

from .conftest import Nodes, wait_until

TIMEOUT = 300  # seconds; a replica starts in ten on an idle machine
PROMPT, RESPONSES = "Hey, my dog is afraid.", ["Poor thing!", "A dog is a mammal."]


@pytest.fixture(scope="module")
def serve() -> Any:
    """The package ray.serve, whose import takes long."""
    return pytest.importorskip("ray.serve", reason="ray[serve] is not installed; run: make install")


@pytest.fixture(scope="module")
def proxy(serve: Any, nodes: Nodes) -> Iterator[str]:
    """The URL of Ray Serve's proxy on the cluster."""
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_a_replica_loads_the_model_with_its_backbone(trained_run: Any, tiny_backbone: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained_run.folder / "model", tmp_path / "model"))
    moved = json.loads((folder / "config.json").read_text())
    moved["backbone_source"]["name"] = "/nowhere"
    (folder / "config.json").write_text(json.dumps(moved))
    (folder / "SHA256SUMS").unlink()
    replica = ReplicaSettings(model=str(folder), backbone=tiny_backbone).replica_app()
    with served(replica) as url:
        assert dmoerm.Client(url).score(PROMPT, RESPONSES) == trained_run.model.score(PROMPT, RESPONSES)


def test_the_arguments_become_the_options_of_the_deployment() -> None:
    """`serve run` passes texts."""
    settings = ReplicaSettings.model_validate(
        {"model": "m", "max_replicas": "3", "target_requests": "8", "gpus": "0.5", "settings": {"queue_seconds": 30}}
    )
    options = settings.deployment()
    assert options["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 8.0}
    assert options["ray_actor_options"] == {"num_cpus": 1.0, "num_gpus": 0.5}
    assert options["graceful_shutdown_timeout_s"] > 30


def test_invalid_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="max_replicas"):
        app({"model": "m", "max_replicas": 0})
    with pytest.raises(ConfigError, match="model"):
        app({})


@pytest.mark.parametrize(("given", "variable"), [("secret", "other"), (None, "secret")])
def test_the_key_is_that_of_the_settings_or_of_the_environment(
    given: str | None, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMOERM_API_KEY", variable)
    settings = ReplicaSettings.model_validate({"model": "m", "settings": {"api_key": given}})
    assert settings.replica_app().state.service.settings.api_key == "secret"


@pytest.mark.slow
def test_a_killed_replica_loses_no_request(serve: Any, nodes: Nodes, proxy: str, trained_run: Any) -> None:
    """Four clients ask two replicas; one of them is killed, and Ray Serve starts another one."""
    serve.run(app({"model": str(trained_run.folder), "min_replicas": 2, "max_replicas": 2, "cpus": 0.5}))
    assert httpx2.get(f"{proxy}/ready", timeout=TIMEOUT).status_code == 200
    assert "<html" in httpx2.get(proxy, headers={"Accept": "text/html"}, timeout=TIMEOUT).text
    with dmoerm.Client(proxy) as client:
        assert client.models() == {trained_run.folder.name: trained_run.model.config.tasks}
    with Load(proxy) as load:
        load.more()
        replicas = nodes.running("ServeReplica")
        assert len(replicas) == 2
        os.kill(replicas[0], signal.SIGKILL)
        load.more()
        wait_until(lambda: len(set(nodes.running("ServeReplica")) - set(replicas)) == 1, "no new replica", TIMEOUT)
        load.more()
    load.check(trained_run.model)
    serve.delete("default")


@pytest.mark.slow
def test_a_replica_without_a_model_gets_no_requests(serve: Any, proxy: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        serve.run(app({"model": str(tmp_path), "cpus": 0.5}))
    assert "config.json" in serve.status().applications["default"].deployments["dmoerm"].message
    serve.delete("default")
