"""What a route may ask for, as annotated types."""

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser

from service.errors import NotReady
from service.live import LiveSearcher
from service.pipeline import Pipeline
from service.reindex import Reindexer
from service.schemas.contract import Contract
from service.searcher import Searcher
from service.settings import ServiceSettings
from service.telemetry import Metrics
from service.tracing import span

Asked = TypeVar("Asked", bound=Contract)

# Larger bodies are parsed in a thread: a megabyte of base64 takes milliseconds, the way to a thread and back a tenth.
_SMALL_BODY = 2**16
# A file of over a megabyte would go through the temporary folder, which may be full; the body is in memory anyhow.
MultiPartParser.spool_max_size = sys.maxsize


class Stopwatch:
    """Times the stages of one request, and traces them; what each took is kept in `stages`, in seconds."""

    def __init__(self, metrics: Metrics, stages: dict[str, float] | None = None) -> None:
        self._metrics = metrics
        self._start = time.perf_counter()
        self._stages = {} if stages is None else stages

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a stage; what one stage takes in several goes is added up."""
        start = time.perf_counter()
        try:
            with span(stage):
                yield
        finally:
            seconds = time.perf_counter() - start
            self._stages[stage] = self._stages.get(stage, 0.0) + seconds
            self._metrics.stage_seconds.labels(stage).observe(seconds)

    def anew(self) -> "Stopwatch":
        """Return another stopwatch, which starts now."""
        return Stopwatch(self._metrics)

    def took_ms(self) -> dict[str, float]:
        """Return the milliseconds of each stage, and of all since the request was understood."""
        stages = {**self._stages, "total": time.perf_counter() - self._start}
        return {stage: round(seconds * 1000, 2) for stage, seconds in stages.items()}


# Coroutines all, though they wait for nothing: FastAPI would run plain functions in threads.
async def _settings(request: Request) -> ServiceSettings:
    return cast("ServiceSettings", request.app.state.settings)


async def _live(request: Request) -> LiveSearcher:
    return cast("LiveSearcher", request.app.state.live)


async def _reindexer(request: Request) -> Reindexer:
    return cast("Reindexer", request.app.state.reindexer)


async def _metrics(request: Request) -> Metrics:
    return cast("Metrics", request.app.state.metrics)


Live = Annotated[LiveSearcher, Depends(_live)]
JobRunner = Annotated[Reindexer, Depends(_reindexer)]
AppMetrics = Annotated[Metrics, Depends(_metrics)]
AppSettings = Annotated[ServiceSettings, Depends(_settings)]


async def _current(request: Request) -> Searcher:
    live = await _live(request)
    if live.searcher is None:
        raise NotReady(live.refused or "No snapshot has been published yet; run `python -m indexer build` first.")
    return live.searcher


CurrentSearcher = Annotated[Searcher, Depends(_current)]
"""The searcher of this moment. A route takes it once, so that its whole answer comes from one snapshot."""


@dataclass(frozen=True)
class Means:
    """What a query is answered with.

    Attributes:
        searcher: of this moment: a whole answer comes from one snapshot.
        pipeline: the stages of all queries.
        settings: of the service.
        took: times the stages of this query.
        notes: what its answer shall tell.
    """

    searcher: Searcher
    pipeline: Pipeline
    settings: ServiceSettings
    took: Stopwatch
    notes: list[str] = field(default_factory=list)


# One dependency that asks for no others: FastAPI takes its time over each.
async def _means(request: Request) -> Means:
    state = request.app.state
    took = Stopwatch(state.metrics, request.scope["stages"])
    return Means(await _current(request), state.pipeline, state.settings, took)


QueryMeans = Annotated[Means, Depends(_means)]


async def _body(request: Request) -> bytes | dict[str, Any]:
    """Read the body: JSON as it came, a form as its fields."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=16) as form:
            fields = form.multi_items()
            return {name: await value.read() if isinstance(value, UploadFile) else value for name, value in fields}
    body = await request.body()
    if body and kind != "application/json":
        detail = f"Send application/json or multipart/form-data, not {kind or 'a body without a content type'}."
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)
    return body


def invalid(error: ValidationError) -> RequestValidationError:
    """Return what FastAPI would raise of a body that is not valid."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    return RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in errors])


def asked(model: type[Asked]) -> Callable[[Request], Coroutine[Any, Any, Asked]]:
    """Return a dependency that reads a request body as `model`.

    FastAPI's own body parameters take either JSON or a form, and parse JSON in the event loop however large it is.
    """

    def parse(body: bytes | dict[str, Any]) -> Asked:
        try:
            if isinstance(body, dict):
                return model.from_form(body)
            return model.model_validate_json(body or b"{}")
        except ValidationError as error:
            raise invalid(error) from error

    async def read(request: Request) -> Asked:
        small = len(await request.body()) <= _SMALL_BODY
        body = await _body(request)
        return parse(body) if small else await asyncio.to_thread(parse, body)

    return read
