"""Traces of OpenTelemetry, and the door to it: one span for a request, and one for each of its stages.

Nothing of OpenTelemetry is imported until an endpoint is given, and without one nothing is traced.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any, Final

from indexer.errors import KindredError

# The tracer of the request that is being answered, if it is traced.
_TRACER: ContextVar[Any] = ContextVar("tracer", default=None)
# Asked every few seconds by those who watch the service, and never of interest.
_UNTRACED: Final = frozenset({"/livez", "/readyz", "/metrics"})
_SERVER_ERROR = 500
# What has not been sent when the service stops may take so long: OpenTelemetry would wait for 30 s, as long as a
# container is given to stop.
_CLOSE_SECONDS = 5


class TracingUnavailable(KindredError):
    """Traces are wanted, and OpenTelemetry is not installed."""


class Tracing:
    """Traces requests, and sends the spans in the background; a collector that is away costs no request anything."""

    def __init__(self, endpoint: str | None) -> None:
        """Get ready.

        Args:
            endpoint: URL of a collector's OTLP/HTTP receiver, such as `http://localhost:4318/v1/traces`; None traces
                nothing. What share of requests is traced is for OpenTelemetry's own `OTEL_TRACES_SAMPLER` to say.

        Raises:
            TracingUnavailable: OpenTelemetry is not installed.
        """
        self._provider = _provider(endpoint) if endpoint else None
        self._tracer = self._provider.get_tracer("kindred") if self._provider else None

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str]) -> Iterator[Any]:
        """Trace a request as part of the trace that its `traceparent` names; give its span, None if it is untraced."""
        if self._tracer is None or path in _UNTRACED:
            yield None
            return
        from opentelemetry.trace import SpanKind  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        parent = TraceContextTextMapPropagator().extract(headers)
        before = _TRACER.set(self._tracer)
        try:
            with self._tracer.start_as_current_span(method, parent, SpanKind.SERVER) as span:
                yield span
        finally:
            _TRACER.reset(before)

    def close(self) -> None:
        """Send what has not been sent yet, unless the collector does not take it within seconds."""
        if self._provider is not None:
            closing = threading.Thread(target=self._provider.shutdown, daemon=True)
            closing.start()
            closing.join(_CLOSE_SECONDS)


def trace_id(span: Any) -> str:
    """Return the id of a span's trace, as `traceparent` has it: 32 hex digits."""
    return f"{span.get_span_context().trace_id:032x}"


def describe(span: Any, method: str, route: str, status: int, request_id: str) -> None:
    """Say how a request was answered, in OpenTelemetry's words."""
    span.update_name(f"{method} {route}")
    span.set_attributes(
        {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "kindred.request_id": request_id,
        }
    )
    if status >= _SERVER_ERROR:
        from opentelemetry.trace import StatusCode  # noqa: PLC0415

        span.set_status(StatusCode.ERROR)


@contextmanager
def span(stage: str) -> Iterator[None]:
    """Trace a stage of the request that is being answered, if it is traced."""
    tracer = _TRACER.get()
    if tracer is None:
        yield
        return
    with tracer.start_as_current_span(stage):
        yield


def note(name: str, value: int) -> None:
    """Add an attribute to the stage that is being traced, if one is."""
    if _TRACER.get() is not None:
        from opentelemetry.trace import get_current_span  # noqa: PLC0415

        get_current_span().set_attribute(name, value)


def _provider(endpoint: str) -> Any:
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise TracingUnavailable("KINDRED_OTLP_ENDPOINT is set, which wants the extra: pip install 'kindred[otel]'.")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "kindred"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return provider
