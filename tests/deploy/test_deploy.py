"""The files in deploy/ name metrics, routes, options and each other's objects: all of them must exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import command, free_port

from dmoerm.cli import load_command
from dmoerm.serving import ServingConfig
from dmoerm.serving.monitoring import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
READ_METRICS = ("grafana/dashboard.json", "kubernetes/autoscaler.yaml", "prometheus-adapter.yaml")


def documents(*names: str) -> list[dict[str, Any]]:
    return [part for name in names for part in yaml.safe_load_all((DEPLOY / name).read_text())]


def walk(value: Any) -> Iterator[Any]:
    """All values in nested lists and mappings."""
    yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(part)


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    """Kubernetes' objects by kind."""
    names = [str(file.relative_to(DEPLOY)) for file in (DEPLOY / "kubernetes").glob("*.yaml")]
    found = documents(*names)
    assert all(each["apiVersion"] and each["metadata"]["name"] == "dmoerm" for each in found)
    return {each["kind"]: each for each in found}


@pytest.fixture(scope="module")
def pod(objects) -> dict[str, Any]:
    return objects["Deployment"]["spec"]["template"]


def arguments() -> dict[str, list[str]]:
    """The arguments of `dmoerm serve`, by the file that gives them."""
    docker = (DEPLOY / "Dockerfile").read_text()
    (entry,) = re.findall(r"^ENTRYPOINT (.+)$", docker, re.M)
    (given,) = re.findall(r"^CMD (.+)$", docker, re.M)
    assert json.loads(entry) == ["dmoerm", "serve"]
    (deployment,) = (each for each in documents("kubernetes/server.yaml") if each["kind"] == "Deployment")
    return {
        "Dockerfile": json.loads(given),
        "compose.yaml": documents("compose.yaml")[0]["services"]["dmoerm"]["command"],
        "server.yaml": deployment["spec"]["template"]["spec"]["containers"][0]["args"],
    }


@pytest.mark.parametrize("file", ["Dockerfile", "compose.yaml", "server.yaml"])
def test_the_arguments_are_those_of_the_command(file):
    serve = load_command("serve")
    values = serve.make_context("serve", list(arguments()[file])).params
    assert (values["model"], values["host"], values["port"]) == ("/model", "0.0.0.0", 8000)


@pytest.mark.parametrize("file", READ_METRICS)
def test_every_metric_exists(file):
    families = Metrics().registry.collect()
    exported = {family.name + suffix for family in families for suffix in SUFFIXES.get(family.type, ())}
    named = set(re.findall(r"\b(?:dmoerm|process)_[a-z_]+", (DEPLOY / file).read_text()))
    assert named
    assert named <= exported


def test_the_dashboard_can_be_imported():
    board = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
    (source,) = documents("grafana/datasources.yaml")[0]["datasources"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) > 0
    assert {each["uid"] for each in walk(board["panels"]) if isinstance(each, dict) and "uid" in each} == {
        source["uid"]
    }
    for panel in board["panels"]:
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            assert target["expr"].count("{") == target["expr"].count("}")


def test_the_objects_select_the_pods(objects, pod):
    labels, spec = pod["metadata"]["labels"], pod["spec"]
    (container,) = spec["containers"]
    for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
        assert objects[kind]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert objects["Service"]["spec"]["selector"].items() <= labels.items()
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert all(target[key] == objects["Deployment"][key] for key in ("apiVersion", "kind"))
    assert target["name"] == objects["Deployment"]["metadata"]["name"]
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in objects["Service"]["spec"]["ports"]} <= ports
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["volumes"]}
    assert spec["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_the_probes_ask_routes_without_a_key(served_app, pod):
    from dmoerm.serving.guard import OPEN

    (container,) = pod["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        request = container[probe]["httpGet"]
        assert request["path"] in served_app.openapi()["paths"].keys() & set(OPEN)
        assert request["port"] in {port["name"] for port in container["ports"]}


def test_accepted_requests_have_the_time_to_end(pod):
    limit = ServingConfig().queue_seconds
    compose = documents("compose.yaml")[0]["services"]["dmoerm"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > limit + 5  # and the pause before the signal
    assert int(compose["stop_grace_period"].removesuffix("s")) > limit


def test_what_compose_mounts_exists():
    compose = documents("compose.yaml")[0]
    mounts = [mount for service in compose["services"].values() for mount in service["volumes"]]
    ours = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert len(ours) == 4
    assert all((DEPLOY.parent / path).is_file() for path in ours)
    server = compose["services"]["dmoerm"]
    assert (DEPLOY.parent / server["build"]["dockerfile"]).is_file()
    (scrape,) = documents("prometheus.yaml")[0]["scrape_configs"]
    assert scrape["static_configs"][0]["targets"] == ["dmoerm:8000"]
    key = server["command"][server["command"].index("--api-key-file") + 1]
    assert key == scrape["authorization"]["credentials_file"]
    assert Path(key).name in compose["secrets"]


@pytest.mark.slow
def test_the_image_s_command_serves_and_is_healthy(trained_run, tmp_path):
    """The image's arguments with another port; nothing is written next to the model, and its health check succeeds."""
    port, model = free_port(), tmp_path / "model"
    trained_run.model.save_pretrained(model, backbone=True)  # the image has no backbone
    before = {file: file.stat().st_mtime_ns for file in model.rglob("*")}
    options = arguments()["Dockerfile"][1:]
    options[options.index("--port") + 1] = str(port)
    with command(model, port, *options, log=tmp_path / "log"):
        docker = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
        (check,) = re.findall(r"^HEALTHCHECK .* CMD (.+)$", docker, re.M)
        check = [sys.executable, *json.loads(check.replace("127.0.0.1:8000", f"127.0.0.1:{port}"))[1:]]
        assert subprocess.run(check, env=os.environ, check=False).returncode == 0, shlex.join(check)
    assert subprocess.run(check, capture_output=True, check=False).returncode != 0
    assert {file: file.stat().st_mtime_ns for file in model.rglob("*")} == before
