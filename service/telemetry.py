"""Request ids, structured logs and metrics. The door to structlog and to prometheus-client."""

import logging
import os
import re
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from http import HTTPMethod, HTTPStatus
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    Summary,
    generate_latest,
    values,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indexer.encoder import gpu_memory
from service.errors import MetricsUnavailable
from service.tracing import Tracing, describe, trace_id

METRICS_TYPE = CONTENT_TYPE_LATEST

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset(HTTPMethod)
# The files that prometheus-client keeps for each of several processes, by what they begin with, and the bytes of each:
# there are no more series than routes, statuses and stages make.
_FILES = ("counter", "gauge_liveall", "gauge_livemostrecent", "gauge_livesum", "histogram", "summary")
_FILE_BYTES = 2**20
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
        self.request_refusals = Counter(
            "kindred_http_refusals", "Requests answered by a problem, by its code.", ["code"], registry=self._registry
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
        self.queue_seconds = Histogram(
            "kindred_queue_wait_seconds",
            "Time that an item waited for a stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        # Of how many searches it tells is its count.
        self.index_recall = Summary(
            "kindred_index_recall_ratio",
            "Share of the true nearest that a search of an approximate index found, of a sample of all searches.",
            ["kind"],
            registry=self._registry,
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
        self._started = Gauge(
            "kindred_worker_started_timestamp_seconds",
            "When a process began to answer, in Unix time.",
            registry=self._registry,
            multiprocess_mode="liveall",
        )
        self._started.set_to_current_time()

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format.

        Raises:
            MetricsUnavailable: those of several processes cannot be told whole.
        """
        if not self._several:
            return generate_latest(self._registry) + generate_latest(_machine([os.getpid()]))
        registry, workers = CollectorRegistry(), list[int]()
        with suppress(OSError, ValueError):
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            workers = _living(registry)
            if os.getpid() in workers:
                return generate_latest(registry) + generate_latest(_machine(workers))
        detail = "The files that processes keep their metrics in are gone, or cannot be had; a new start makes others."
        raise MetricsUnavailable(detail)


def keep_files(folder: Path) -> None:
    """Give this process files for its metrics in the folder `PROMETHEUS_MULTIPROC_DIR`, before it makes any.

    They are mapped, and prometheus-client leaves holes in them: to write there once the disk is full would end the
    process. So they are whole from the start. Where they cannot be had, this process counts for itself alone, and
    serves all the same.
    """
    try:
        folder.mkdir(0o700, exist_ok=True)  # it may have been deleted
        for kind in _FILES:
            path = folder / f"{kind}_{os.getpid()}.db"
            new = path.with_suffix(".new")
            with new.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)
            new.rename(path)  # nobody reads one that is empty
    except OSError as error:
        values.ValueClass = values.MutexValue
        structlog.get_logger().error("no metrics of this process", reason=str(error))
        for path in folder.glob(f"*_{os.getpid()}.*"):
            path.unlink()


def forget_process(pid: int) -> None:
    """Drop the gauges of a process that has ended; what it had counted stays in the sums."""
    with suppress(OSError):  # the files may be gone
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


class _Processes:
    """Collects what each of some processes takes of the machine."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of prometheus-client's own collector, each with the process that it is of."""
        families: dict[str, Metric] = {}
        for pid in self._pids:
            one = ProcessCollector(pid=lambda pid=pid: pid, registry=CollectorRegistry())  # type: ignore[misc]
            for metric in one.collect():
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    family.add_sample(sample.name, {"worker": str(pid)}, sample.value)
        return families.values()


class _Gpus:
    """Collects the memory of the GPUs, once torch uses them."""

    def collect(self) -> Iterable[Metric]:
        """Return the memory of each, whoever uses it."""
        free = GaugeMetricFamily("kindred_gpu_memory_free_bytes", "Memory of a GPU that is free.", labels=["device"])
        size = GaugeMetricFamily("kindred_gpu_memory_size_bytes", "Memory of a GPU.", labels=["device"])
        for device, memory in enumerate(gpu_memory()):
            for family, value in zip((free, size), memory, strict=True):
                family.add_metric([str(device)], value)
        return [family for family in (free, size) if family.samples]


def _machine(workers: Iterable[int]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Processes(workers))
    registry.register(_Gpus())
    return registry


def _living(registry: CollectorRegistry) -> list[int]:
    return [
        int(sample.labels["pid"])
        for metric in registry.collect()
        if metric.name == "kindred_worker_started_timestamp_seconds"
        for sample in metric.samples
    ]


class Telemetry:
    """Gives each request an id (or keeps the client's), a log line, its place in the metrics and, if wanted, a trace.

    What its stages took, in seconds, is collected in `scope["stages"]`, and told the client as `Server-Timing`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, watched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = scope["request_id"] = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        stages: dict[str, float] = {}
        scope["stages"] = stages
        status = 500
        start = time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
                if stages:
                    timing = _server_timing({**stages, "total": time.perf_counter() - start})
                    MutableHeaders(scope=message)["Server-Timing"] = timing
            await send(message)

        with self._tracing.request(scope["method"], scope["path"], headers) as span, _bound(request_id, span):
            try:
                await self._app(scope, receive, watched)
            finally:
                self._note(scope, status, time.perf_counter() - start)
                if span is not None:
                    describe(span, *_route(scope), status, request_id)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method, route = _route(scope)
        self._metrics.requests.labels(method, route, str(status)).inc()
        if status >= HTTPStatus.BAD_REQUEST:
            self._metrics.request_refusals.labels(scope.get("problem", "none")).inc()
        self._metrics.request_seconds.labels(method, route).observe(seconds)
        structlog.get_logger().info(
            "request", method=scope["method"], path=scope["path"], status=status, ms=round(seconds * 1000, 1)
        )


def _route(scope: Scope) -> tuple[str, str]:
    """Return what is bounded: the template, as the ids in a path are not, and a method that HTTP knows."""
    route = getattr(scope.get("route"), "path", "none")
    method = scope["method"]
    return (method if method in _METHODS and route != "none" else "other"), route


def _bound(request_id: str, span: Any) -> AbstractContextManager[Any]:
    ids = {"request_id": request_id, **({} if span is None else {"trace_id": trace_id(span)})}
    return structlog.contextvars.bound_contextvars(**ids)


def _server_timing(stages: Mapping[str, float]) -> str:
    return ", ".join(f"{stage};dur={seconds * 1000:.2f}" for stage, seconds in stages.items())


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
