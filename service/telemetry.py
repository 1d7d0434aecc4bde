"""Request ids, structured logs and metrics. The door to structlog and to prometheus-client."""

import logging
import re
import sys
import time
import uuid

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METRICS_TYPE = CONTENT_TYPE_LATEST

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one app, which may answer in several processes.

    Args:
        several: whether to give the metrics of all processes for each one's: counters and histograms add up.
            prometheus-client keeps them in the folder `PROMETHEUS_MULTIPROC_DIR`.
    """

    def __init__(self, *, several: bool = False) -> None:
        self._several = several
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "kindred_http_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self.request_seconds = Histogram(
            "kindred_http_request_duration_seconds",
            "Time to answer a request.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.stage_seconds = Histogram(
            "kindred_stage_duration_seconds",
            "Time spent in one stage of a query.",
            ["stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batch_size = Histogram(
            "kindred_batch_size",
            "Items that one call of a stage worked on.",
            ["stage"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self._registry,
        )
        self.queue_depth = Gauge(
            "kindred_queue_depth",
            "Items that wait for a stage.",
            ["stage"],
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self.text_cache = Counter(
            "kindred_text_cache", "Texts looked for among those encoded before.", ["outcome"], registry=self._registry
        )
        # Processes follow what is published each by itself: the last one to do so tells.
        self.pictures = Gauge(
            "kindred_index_pictures",
            "Pictures in the served snapshot.",
            registry=self._registry,
            multiprocess_mode="livemostrecent",
        )
        self.created = Gauge(
            "kindred_snapshot_created_timestamp_seconds",
            "When the served snapshot was built, in Unix time.",
            registry=self._registry,
            multiprocess_mode="livemostrecent",
        )
        self.swaps = Counter("kindred_snapshot_swaps", "Snapshots taken into service.", registry=self._registry)
        self.refusals = Counter("kindred_snapshot_refusals", "Snapshots refused.", registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        registry = self._registry
        if self._several:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def forget_process(pid: int) -> None:
    """Drop the gauges of a process that has ended; what it had counted stays in the sums."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]


class Telemetry:
    """Gives each request an id (or keeps the client's), a log line and its place in the metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, watched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = scope["request_id"] = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        status = 500
        start = time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, watched)
            finally:
                self._note(scope, status, time.perf_counter() - start)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's template, not the path: an id in a label would make a new series of each picture.
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if route != "none" else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.request_seconds.labels(method, route).observe(seconds)
        structlog.get_logger().info(
            "request", method=scope["method"], path=scope["path"], status=status, ms=round(seconds * 1000, 1)
        )


def configure_logs() -> None:
    """Write logs to standard error: readable on a terminal, JSON elsewhere."""
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if sys.stderr.isatty():
        renderer = structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def silence_logs() -> None:
    """Write none: what goes wrong is told by the answers."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
