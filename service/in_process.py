"""in_process(): a client of a service that runs in this process, over a folder of snapshots and without a port."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from httpx2 import ASGITransport

from indexer.store import SnapshotStore
from service.app import create_app
from service.client import AsyncClient
from service.settings import ServiceSettings


@asynccontextmanager
async def in_process(settings: ServiceSettings) -> AsyncIterator[AsyncClient]:
    """Answer as the service does, by the same code.

    Raises:
        NoSnapshot: nothing has been published in `settings.snapshots`.
    """
    SnapshotStore(settings.snapshots).published()
    if settings.backend == "auto":
        # ONNX Runtime takes an export of up to a minute, which pays only while a service runs on.
        settings = settings.model_copy(update={"backend": "torch"})
    app = create_app(settings.model_copy(update={"keys": None, "rate_limit": ""}))  # whoever may read them may search
    transport = ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        AsyncClient("http://kindred", retries=0, transport=transport) as client,
    ):
        yield client
