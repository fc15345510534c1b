"""OpenTelemetry traces of requests (the extra `otel`): one span per request, with its encoding, waits and passes.

    POST /v1/score            the whole request; continues the client's trace (`traceparent`)
        encode                texts to token ids, with the wait for a tokenizing thread
        queue                 from then to the first pass
        pass                  each pass that scored a part of the request, with the tokens that all requests had in it

Spans have sizes and times; never a text. OpenTelemetry is imported by `Tracing` alone; without one, a request has no
trace and nothing is measured. FastAPI's own spans are not used: they begin after the key and the body have been read.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

from ..errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

TRACE: contextvars.ContextVar[RequestTrace | None] = contextvars.ContextVar("trace", default=None)
"""The current request's trace; None outside a request, and without tracing."""


class Tracing:
    """Start the traces of requests.

    Args:
        provider: where spans go, such as the SDK's `TracerProvider`.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("dmoerm")

    @classmethod
    def from_environment(cls) -> Self:
        """Send spans by OTLP over HTTP, as the standard variables OTEL_EXPORTER_OTLP_ENDPOINT and others say.

        Raises:
            ConfigError: the extra `otel` is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"--traces needs the package {error.name}: pip install '.[otel]' in dmoerm's folder"
            ) from None
        named = Resource.create({SERVICE_NAME: "dmoerm"}).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=named)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def start(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> RequestTrace:
        """Start the trace of the current request, below the client's span if its headers name one."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        attributes = {"http.request.method": method, "http.route": path}
        span = self._tracer.start_span(f"{method} {path}", extract(carrier), SpanKind.SERVER, attributes)
        trace = RequestTrace(self._tracer, span)
        TRACE.set(trace)
        return trace

    def close(self) -> None:
        """Send the spans that wait."""
        shutdown: Any = getattr(self._provider, "shutdown", None)
        if shutdown is not None:
            shutdown()


class RequestTrace:
    """The span of one request, which gets its parts once they have ended."""

    def __init__(self, tracer: Any, span: Any) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer, self._span, self._context = tracer, span, set_span_in_context(span)

    def add(self, name: str, started: float, **attributes: Any) -> None:
        """Add a part that has just ended.

        Args:
            started: the part's begin, of `time.monotonic`.
        """
        now = time.time_ns()
        begin = now - int((time.monotonic() - started) * 1e9)
        attributes = {f"dmoerm.{key}": value for key, value in attributes.items()}
        self._tracer.start_span(name, self._context, attributes=attributes, start_time=begin).end(now)

    def end(self, status: int, sizes: dict[str, int]) -> None:
        """End the request with its HTTP status, and the numbers of its responses and tokens."""
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("http.response.status_code", status)
        self._span.set_attributes({f"dmoerm.{name}": size for name, size in sizes.items()})
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()
