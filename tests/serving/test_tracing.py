"""Traces of requests, in the SDK's in-memory exporter and as a collector gets them."""

from __future__ import annotations

import http.server
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from running import served

from dmoerm.errors import ConfigError
from dmoerm.serving import ServingConfig, create_app
from dmoerm.serving.tracing import Tracing

BODY = {"items": [{"prompt": "A secret prompt", "responses": ["A secret response. " * 20, "No."]}]}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def client(trained_run: Any, spans: InMemorySpanExporter) -> Iterator[httpx2.Client]:
    """A client of a server whose passes have room for one response only."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    settings = ServingConfig(batch_tokens=1)
    app = create_app(trained_run.model, settings, "tiny", tracing=Tracing(provider))
    with served(app) as url, httpx2.Client(base_url=url, timeout=30) as client:
        yield client


def finished(spans: InMemorySpanExporter, count: int) -> Any:
    """The finished spans; the last one ends when the answer is sent, and a client may have it before."""
    deadline = time.monotonic() + 30
    while len(found := spans.get_finished_spans()) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


def test_a_request_has_its_encoding_its_wait_and_its_passes(client: httpx2.Client, spans: InMemorySpanExporter) -> None:
    spans.clear()
    answer = client.post("/v1/score", json=BODY, headers={"traceparent": PARENT})
    assert answer.status_code == 200
    *parts, whole = finished(spans, 5)
    assert whole.name == "POST /v1/score"
    assert f"{whole.context.trace_id:032x}-{whole.parent.span_id:016x}" == PARENT[3:52]
    assert whole.attributes["http.response.status_code"] == 200
    assert whole.attributes["dmoerm.responses"] == 2
    assert whole.attributes["dmoerm.tokens"] == answer.json()["usage"]["tokens"]
    assert [part.name for part in parts] == ["encode", "queue", "pass", "pass"]
    assert {part.parent.span_id for part in parts} == {whole.context.span_id}
    assert sum(part.attributes["dmoerm.pass_tokens"] for part in parts[2:]) > whole.attributes["dmoerm.tokens"]
    for earlier, later in itertools.pairwise(parts):
        assert whole.start_time <= earlier.start_time <= earlier.end_time <= later.end_time <= whole.end_time
    assert "secret" not in "".join(span.to_json() for span in [*parts, whole])


def test_what_is_refused_has_a_trace_and_unknown_paths_share_a_name(
    client: httpx2.Client, spans: InMemorySpanExporter
) -> None:
    spans.clear()
    client.post("/v1/score", json={"items": []})
    client.get("/a/path/of/the/clients")
    names = [(span.name, span.attributes["http.response.status_code"]) for span in finished(spans, 2)]
    assert names == [("POST /v1/score", 422), ("GET other", 404)]


def test_a_collector_gets_the_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTLP over HTTP, to the address of the standard variable, with the service's name."""
    received = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
        tracing = Tracing.from_environment()
        tracing.start("POST", "/predict", []).end(500, {})
        tracing.close()
        server.shutdown()
    ((path, body),) = received
    assert path == "/v1/traces"
    assert b"POST /predict" in body
    assert b"dmoerm" in body


def test_the_application_ends_the_tracing(trained_run: Any) -> None:
    """In its lifespan: uvicorn ends the process by the signal that it got, so that nothing runs after it."""

    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(spans, schedule_delay_millis=3_600_000))  # sends at its end
    with served(create_app(trained_run.model, tracing=Tracing(provider))) as url:
        httpx2.post(f"{url}/v1/score", json=BODY, timeout=30).raise_for_status()
        assert not spans.get_finished_spans()
    assert "POST /v1/score" in {span.name for span in spans.get_finished_spans()}


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[otel\]'"):
        Tracing.from_environment()


@pytest.mark.slow
def test_nothing_is_imported_without_it() -> None:
    """Neither SDK nor exporter; FastAPI itself imports the interface."""
    code = (
        "import sys, dmoerm.serving.server; "
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
