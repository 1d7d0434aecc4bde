"""`python -m service`: serve a folder of snapshots over HTTP."""

import json
import socket
import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvicorn

from indexer.errors import KindredError
from service.app import create_app
from service.live import LiveSearcher
from service.settings import ServiceSettings
from service.telemetry import configure_logs

# Requests under way at SIGTERM may take this long to end.
_DRAIN_SECONDS = 20


class _Server(uvicorn.Server):
    """Says where it listens, and what to try there, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            print("\n".join(_welcome(f"http://{host}:{port}", self.config.app.state.live)), flush=True)  # type: ignore[union-attr]


def serve(
    snapshots: Annotated[Path | None, typer.Option(help="Folder of snapshots, instead of KINDRED_SNAPSHOTS.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on, instead of KINDRED_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, instead of KINDRED_PORT.")] = None,
) -> None:
    """Serve a folder of snapshots over HTTP, and follow what is published into it."""
    given = {"snapshots": snapshots, "host": host, "port": port}
    settings = ServiceSettings(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    configure_logs()
    if settings.admin_key is None:
        structlog.get_logger().info("no admin routes: KINDRED_ADMIN_KEY is not set")
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    _Server(config).run()


def main() -> None:
    """Run the command line; an error that was foreseen is one line, not a traceback."""
    try:
        typer.run(serve)
    except KindredError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


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


if __name__ == "__main__":
    main()
