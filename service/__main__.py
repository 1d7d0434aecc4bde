"""`python -m service`: serve a folder of snapshots over HTTP."""

from pathlib import Path
from typing import Annotated

import structlog
import typer

from indexer.errors import one_line_errors
from service.server import run
from service.settings import ServiceSettings
from service.telemetry import configure_logs


def serve(
    snapshots: Annotated[Path | None, typer.Option(help="Folder of snapshots, instead of KINDRED_SNAPSHOTS.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on, instead of KINDRED_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, instead of KINDRED_PORT.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that answer, instead of KINDRED_SERVICE_WORKERS.")
    ] = None,
) -> None:
    """Serve a folder of snapshots over HTTP, and follow what is published into it."""
    given = {"snapshots": snapshots, "host": host, "port": port, "service_workers": workers}
    settings = ServiceSettings(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    configure_logs()
    if settings.admin_key is None and settings.keys is None:
        structlog.get_logger().info("no admin routes: KINDRED_ADMIN_KEY is not set")
    run(settings)


def main() -> None:
    """Run the command line."""
    with one_line_errors():
        typer.run(serve)


if __name__ == "__main__":
    main()
