"""create_app(): the one place that puts the service together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from math import inf

from fastapi import FastAPI

from indexer.store import SnapshotStore
from service import admin, errors, openapi
from service.admission import BodyMemory, Door, Doorway, Room
from service.auth import Gate
from service.limits import BodyLimit
from service.live import LiveSearcher
from service.pipeline import Pipeline
from service.reindex import Reindexer
from service.routes import classify, embeddings, index, items, page, search
from service.routes import map as map_
from service.settings import ServiceSettings
from service.telemetry import Metrics, Telemetry
from service.tracing import Tracing

DESCRIPTION = "Vector similarity search for images: text, picture and k-NN queries over one embedding per picture."


def create_app(settings: ServiceSettings) -> FastAPI:
    """Return the service over one folder of snapshots."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Before the first request: a service that accepts connections answers them.
        await asyncio.to_thread(live.refresh)
        app.state.pipeline = pipeline = Pipeline(settings, metrics)
        follower = asyncio.create_task(live.follow())
        yield
        follower.cancel()
        await asyncio.to_thread(pipeline.close)
        await asyncio.to_thread(reindexer.close)
        await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="kindred",
        version=version("kindred"),
        description=DESCRIPTION,
        lifespan=lifespan,
        # The page of the API is a page of ours: FastAPI's own fetch their scripts from another host.
        docs_url=None,
        redoc_url=None,
    )
    store = SnapshotStore(settings.snapshots)
    metrics = Metrics(several=settings.service_workers > 1)
    tracing = Tracing(settings.otlp_endpoint)
    live = LiveSearcher(store, settings, metrics)
    reindexer = Reindexer(store)
    # One batch is worked on while the next one gathers.
    app.state.door = door = Door(Room(inf, settings.queue_seconds, always=2 * settings.max_batch), metrics)
    app.state.settings, app.state.metrics, app.state.live, app.state.reindexer = settings, metrics, live, reindexer
    for subject in (search, classify, embeddings, index, items, map_):
        app.include_router(subject.router)
    app.include_router(index.probes)
    app.include_router(page.router())
    if settings.admin_key is not None or settings.keys is not None:
        app.include_router(admin.router)
    # The last one added is the outermost: a body that is refused is logged and counted like any other request.
    app.add_middleware(BodyMemory, most=settings.body_memory)
    app.add_middleware(BodyLimit, most=settings.max_body_bytes)
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(Telemetry, metrics=metrics, tracing=tracing)
    # Outside of all, so that a place is given back whoever answers.
    app.add_middleware(Doorway, door=door)
    errors.install(app)
    openapi.install(app)
    return app
