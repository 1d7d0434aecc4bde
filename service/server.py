"""run(): the service in one process, or in several that share a socket."""

import gc
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from types import FrameType

import structlog
import typer
import uvicorn
from uvicorn.config import STARTUP_FAILURE

from service.app import create_app
from service.live import LiveSearcher
from service.protocol import TimedProtocol
from service.settings import ServiceSettings
from service.telemetry import configure_logs, forget_process, keep_files

# From SIGTERM on, /readyz answers 503 for this long before connections are refused.
_NOTICE_SECONDS = 1
# Requests under way then may take this long to end.
_DRAIN_SECONDS = 20
# A worker may take this long to end: it drains, and ends a reindex.
_STOP_SECONDS = 45
# How soon a signal, or a death, is noticed; workers that die as soon as they live are not started more often.
_LOOK_SECONDS = 0.5
# Imported once, by the process that workers are forked from: so they share its memory, and start at once. None of it
# looks for GPUs when it is imported, which a forked process could then not use.
_SHARED = ["service.server", "indexer.open_clip_encoder"]
_METRICS = "PROMETHEUS_MULTIPROC_DIR"
_FORKS = multiprocessing.get_context("forkserver")


class _Server(uvicorn.Server):
    """Leaves what it starts with alone, and may say where it listens, and what to try there."""

    def __init__(self, config: uvicorn.Config, *, greets: bool) -> None:
        super().__init__(config)
        self._greets = greets
        self._leaves_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Be found not ready first, and stop after that: whoever asks has time to send requests elsewhere."""
        if sig != signal.SIGTERM or not self.started:
            super().handle_exit(sig, frame)
        elif self._leaves_at is None:
            self._captured_signals.append(sig)
            self.config.app.state.live.leaving = True  # type: ignore[union-attr]
            self._leaves_at = time.monotonic() + _NOTICE_SECONDS

    async def on_tick(self, counter: int) -> bool:
        if self._leaves_at is not None and time.monotonic() >= self._leaves_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Libraries and the model are half a million objects that never go. To look through them for garbage takes
        # a second, in which nothing is answered, and a service under load would do so every few seconds.
        gc.collect()
        gc.freeze()
        if self.started and self._greets:
            host, port = (sockets or self.servers[0].sockets)[0].getsockname()[:2]
            typer.echo("\n".join(_welcome(f"http://{host}:{port}", self.config.app.state.live)))  # type: ignore[union-attr]


class _Supervisor:
    """Runs workers, and replaces those that die."""

    def __init__(self, settings: ServiceSettings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._told: list[int] = []

    def run(self) -> int | None:
        """Return the signal that ended this; None if a worker cannot start, as then none can."""
        # A signal to the whole group is for this process to pass on: without the one that forks, it hears of no end.
        _on_signals(signal.SIG_IGN)
        ensure_running()
        _on_signals(lambda number, _: self._told.append(number))
        workers = [self._start(first=number == 0) for number in range(self._settings.service_workers)]
        while not self._told and all(worker.exitcode != STARTUP_FAILURE for worker in workers):
            workers = [self._replaced(worker) if worker.exitcode is not None else worker for worker in workers]
            time.sleep(_LOOK_SECONDS)
        deadline = time.monotonic() + _STOP_SECONDS
        while (living := [worker for worker in workers if worker.exitcode is None]) and time.monotonic() < deadline:
            for worker in living:
                worker.terminate()  # again and again: one that is just being forked is deaf to it
            time.sleep(_LOOK_SECONDS)
        for worker in workers:
            worker.kill()
            worker.join()
        return self._told[0] if self._told else None

    def _start(self, *, first: bool = False) -> ForkServerProcess:
        worker = _FORKS.Process(target=_work, args=(self._settings, self._listener, first))
        worker.start()
        return worker

    def _replaced(self, worker: ForkServerProcess) -> ForkServerProcess:
        if worker.pid is not None:
            forget_process(worker.pid)
        structlog.get_logger().error("worker replaced", pid=worker.pid, code=worker.exitcode)
        return self._start()


def run(settings: ServiceSettings) -> None:
    """Serve until told to stop by a signal, and end by it.

    Raises:
        SystemExit: the address cannot be listened on, or the service cannot start.
    """
    if settings.service_workers == 1:
        _Server(_config(settings), greets=True).run()
        return
    with tempfile.TemporaryDirectory(prefix="kindred-metrics-", ignore_cleanup_errors=True) as metrics:
        # For the workers: prometheus-client looks for it when it is imported.
        os.environ[_METRICS] = metrics
        _FORKS.set_forkserver_preload(_SHARED)
        number = _Supervisor(settings, _listener(settings)).run()
    if number is None:
        sys.exit(STARTUP_FAILURE)
    _on_signals(signal.SIG_DFL)
    signal.raise_signal(number)


def _listener(settings: ServiceSettings) -> socket.socket:
    return uvicorn.Config("", host=settings.host, port=settings.port, log_level="warning").bind_socket()


def _config(settings: ServiceSettings) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=TimedProtocol,
        ws="none",
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=settings.proxies,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )


def _work(settings: ServiceSettings, listener: socket.socket, first: bool) -> None:
    """Be a worker; the first one says where the service listens."""
    # What is shared with the other workers is not looked through for garbage: that would write to it, and so copy it.
    gc.freeze()
    _on_signals(signal.SIG_DFL)
    configure_logs()
    keep_files(Path(os.environ[_METRICS]))
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    _Server(_config(settings), greets=first).run([listener])


def _on_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _end_with_supervisor() -> None:
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        supervisor.join()
        # Or the next service could not listen where this one still does.
        os.kill(os.getpid(), signal.SIGTERM)


def _welcome(address: str, live: LiveSearcher) -> list[str]:
    """Return the address and, once there is something to search, lines that work as pasted."""
    if live.searcher is None:
        return [f"kindred listens on {address}, with nothing to search yet: {live.refused or 'no snapshot'}"]
    snapshot = live.searcher.snapshot
    image = snapshot.catalog.rows([0])[0]
    text = json.dumps({"query": [{"text": image.caption or image.label or "a red star"}], "limit": 5})
    location = Path(snapshot.manifest.options.sources[image.source], image.path)
    uploads = [
        f"  curl -s {address}/v1/search -F 'file=@{location}' -F limit=5",
        f"  curl -s {address}/v1/classify -F 'file=@{location}'",
    ]
    return [
        f"kindred serves {len(snapshot):,} pictures on {address} (documentation: {address}/docs). Try:",
        f"  curl -s {address}/v1/search -H 'Content-Type: application/json' -d '{text}'",
        *(uploads if location.is_file() else ()),  # it may lie in a tar, or elsewhere
        *filter(None, [live.searcher.encoder.spec.name.notice]),
    ]
