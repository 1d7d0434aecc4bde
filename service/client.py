"""Clients of the service, one that waits and one for asyncio, with the same methods.

    from service.client import Client
    client = Client("http://localhost:8000")
    results = client.search("a red star", limit=5)          # in a notebook: a grid of pictures
    alike = client.search(image="picture.jpg", filter={"must": {"key": "label", "match": {"value": "star"}}})
    mixed = client.search(id=results[0].id, query="- 0.5:a blue background")

Requests and answers are those of `service.schemas`, which say what each option means. What changes nothing is sent
again when the service is busy or out of reach.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2
import numpy as np
from numpy.typing import NDArray

from indexer.errors import KindredError
from service import client_calls as calls
from service.client_calls import Call, PageType
from service.client_options import (
    BrowseOptions,
    ClassifyOptions,
    Picture,
    ReindexOptions,
    Search,
    SearchOptions,
    ZeroShotOptions,
)
from service.client_wire import (
    Address,
    BadArgument,
    CursorGone,
    KindredApiError,
    ServiceUnreachable,
    reaching,
    refusal,
)
from service.picture_grid import SearchResults
from service.schemas.admin import JobInfo, SnapshotInfo
from service.schemas.classify import ClassifyResponse, ZeroShotResponse
from service.schemas.index import IndexResponse
from service.schemas.items import BrowseResponse, ItemDetail, Result
from service.schemas.search import SearchResponse

__all__ = [
    "AsyncClient",
    "BadArgument",
    "Client",
    "CursorGone",
    "KindredApiError",
    "SearchResults",
    "ServiceUnreachable",
]

Answer = TypeVar("Answer")


class Client:
    """Talks to a service, and waits for its answers. Any thread may use it.

    Args:
        url: of the service, such as `http://localhost:8000`.
        key: the admin key, for the methods from `reindex` on.
        timeout: seconds without a sign of the service after which a call is given up.
        retries: how many more times what changes nothing is sent when the service is busy or out of reach, if the waits
            that it asks for end within a minute.
        transport: another way to the service, such as a Unix socket.

    Every method raises:
        KindredApiError: the service answered with an error.
        ServiceUnreachable: there was no answer.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._address = Address(url, key, timeout, retries)
        self._http = httpx2.Client(**self._address.settings(), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def search(self, text: str | None = None, **options: Unpack[SearchOptions]) -> SearchResults:
        """Find the pictures nearest to a text, a picture, a picture of the index, or all of them at once.

        Args:
            text: what the pictures shall show, in words.
            options: `image` (a path, bytes, a PIL image or pixels), `id`, `query` (parts with weights, or the same in
                short: `2:a dog - a beach`), and the further fields of `SearchRequest`, such as `limit` and `filter`.
        """
        return self._shown(self._send(calls.search(text, **options)))

    def pages(self, text: str | None = None, **options: Unpack[SearchOptions]) -> Iterator[SearchResults]:
        """Search as `search` does, and go on: each of the pages has `limit` results.

        Raises:
            CursorGone: the index has been rebuilt since the first page.
        """
        return map(self._shown, self._pages(calls.search(text, **options)))

    def search_batch(self, searches: Sequence[Search]) -> list[SearchResults | KindredApiError]:
        """Search several times in one request; each search has the arguments of `search`, one that fails its error."""
        return [
            each if isinstance(each, KindredApiError) else self._shown(each)
            for each in self._send(calls.search_batch(searches))
        ]

    def export(self, text: str | None = None, **options: Unpack[SearchOptions]) -> Iterator[Result]:
        """Search for up to 100,000 results, which come one by one."""
        return self._lines(calls.export(text, **options))

    def classify(self, text: str | None = None, **options: Unpack[ClassifyOptions]) -> ClassifyResponse:
        """Classify a text, a picture, or a picture of the index by the votes of its labelled neighbours."""
        return self._send(calls.classify(text, **options))

    def zero_shot(
        self,
        labels: Sequence[str] | Mapping[str, Sequence[str]],
        text: str | None = None,
        **options: Unpack[ZeroShotOptions],
    ) -> ZeroShotResponse:
        """Classify into labels that need no examples: a list of them, or prompts for each."""
        return self._send(calls.zero_shot(labels, text, **options))

    def embed(self, texts: Sequence[str] = (), images: Sequence[Picture] = ()) -> NDArray[np.float32]:
        """Return embeddings of length 1, first of the texts, then of the pictures; shape (n, dim)."""
        return np.concatenate([self._send(call) for call in calls.embed(texts, images)])

    def items(self, **options: Unpack[BrowseOptions]) -> Iterator[BrowseResponse]:
        """Browse the pictures of the index that a filter matches, page by page, in the order of the index.

        Args:
            options: `filter` (all where left out), `limit` (of a page) and `facets` (keys whose values are counted).

        Raises:
            CursorGone: the index has been rebuilt since the first page.
        """
        return self._pages(calls.items(**options))

    def item(self, item_id: str) -> ItemDetail:
        """Return all that is known of a picture of the index."""
        return self._send(calls.item(item_id))

    def thumbnail(self, item_id: str) -> bytes:
        """Return the small JPEG of a picture of the index."""
        return self._send(calls.thumbnail(item_id))

    def index(self) -> IndexResponse:
        """Describe the served snapshot."""
        return self._send(calls.index())

    def reindex(self, **options: Unpack[ReindexOptions]) -> JobInfo:
        """Start to build a new snapshot; what is left out is as in the current one."""
        return self._send(calls.reindex(options))

    def job(self, job_id: str) -> JobInfo:
        """Tell how far a reindex is."""
        return self._send(calls.job(job_id))

    def snapshots(self) -> list[SnapshotInfo]:
        """List all snapshots, newest first."""
        return self._send(calls.snapshots())

    def activate(self, snapshot_id: str) -> IndexResponse:
        """Make a snapshot current, for example an earlier one."""
        return self._send(calls.activate(snapshot_id))

    def _send(self, call: Call[Answer]) -> Answer:
        response = self._respond(call)
        with reaching(response.url, self._address.timeout):
            return call.read(response.content)

    def _pages(self, call: Call[PageType]) -> Iterator[PageType]:
        following: Call[PageType] | None = call
        while following is not None:
            page = self._send(following)
            yield page
            following = calls.after(following, page)

    def _lines(self, call: Call[Answer]) -> Iterator[Answer]:
        lines = calls.Lines()
        response = self._respond(call, stream=True)
        with closing(response), reaching(response.url, self._address.timeout):
            for chunk in response.iter_bytes():
                yield from map(call.read, lines.of(chunk))

    def _respond(self, call: Call[Any], *, stream: bool = False) -> httpx2.Response:
        request = self._http.build_request(call.method, call.path, json=call.json, params=call.params)

        def attempt() -> httpx2.Response:
            with reaching(request.url, self._address.timeout):
                response = self._http.send(request, stream=stream)
                if response.is_success:
                    return response
                response.read()
                raise refusal(response)

        return self._address.retrying(repeatable=call.repeatable)(attempt)

    def _shown(self, response: SearchResponse) -> SearchResults:
        return SearchResults(response, self._thumbnails)

    def _thumbnails(self, ids: Sequence[str]) -> list[bytes | None]:
        def found(item_id: str) -> bytes | None:
            try:
                return self.thumbnail(item_id)
            except KindredError:
                return None

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(found, ids))


class AsyncClient:
    """Talks to a service from asyncio; all is as with `Client`."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._address = Address(url, key, timeout, retries)
        self._http = httpx2.AsyncClient(**self._address.settings(), transport=transport)
        # Notebooks draw results without waiting for anything.
        self._thumbnails = self._fetched if transport is None else None

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def search(self, text: str | None = None, **options: Unpack[SearchOptions]) -> SearchResults:
        """See `Client.search`."""
        return self._shown(await self._send(calls.search(text, **options)))

    def pages(self, text: str | None = None, **options: Unpack[SearchOptions]) -> AsyncIterator[SearchResults]:
        """See `Client.pages`."""
        pages = self._pages(calls.search(text, **options))
        return (self._shown(page) async for page in pages)

    async def search_batch(self, searches: Sequence[Search]) -> list[SearchResults | KindredApiError]:
        """See `Client.search_batch`."""
        return [
            each if isinstance(each, KindredApiError) else self._shown(each)
            for each in await self._send(calls.search_batch(searches))
        ]

    def export(self, text: str | None = None, **options: Unpack[SearchOptions]) -> AsyncIterator[Result]:
        """See `Client.export`."""
        return self._lines(calls.export(text, **options))

    async def classify(self, text: str | None = None, **options: Unpack[ClassifyOptions]) -> ClassifyResponse:
        """See `Client.classify`."""
        return await self._send(calls.classify(text, **options))

    async def zero_shot(
        self,
        labels: Sequence[str] | Mapping[str, Sequence[str]],
        text: str | None = None,
        **options: Unpack[ZeroShotOptions],
    ) -> ZeroShotResponse:
        """See `Client.zero_shot`."""
        return await self._send(calls.zero_shot(labels, text, **options))

    async def embed(self, texts: Sequence[str] = (), images: Sequence[Picture] = ()) -> NDArray[np.float32]:
        """See `Client.embed`."""
        return np.concatenate([await self._send(call) for call in calls.embed(texts, images)])

    def items(self, **options: Unpack[BrowseOptions]) -> AsyncIterator[BrowseResponse]:
        """See `Client.items`."""
        return self._pages(calls.items(**options))

    async def item(self, item_id: str) -> ItemDetail:
        """See `Client.item`."""
        return await self._send(calls.item(item_id))

    async def thumbnail(self, item_id: str) -> bytes:
        """See `Client.thumbnail`."""
        return await self._send(calls.thumbnail(item_id))

    async def index(self) -> IndexResponse:
        """See `Client.index`."""
        return await self._send(calls.index())

    async def reindex(self, **options: Unpack[ReindexOptions]) -> JobInfo:
        """See `Client.reindex`."""
        return await self._send(calls.reindex(options))

    async def job(self, job_id: str) -> JobInfo:
        """See `Client.job`."""
        return await self._send(calls.job(job_id))

    async def snapshots(self) -> list[SnapshotInfo]:
        """See `Client.snapshots`."""
        return await self._send(calls.snapshots())

    async def activate(self, snapshot_id: str) -> IndexResponse:
        """See `Client.activate`."""
        return await self._send(calls.activate(snapshot_id))

    async def _send(self, call: Call[Answer]) -> Answer:
        response = await self._respond(call)
        with reaching(response.url, self._address.timeout):
            return call.read(response.content)

    async def _pages(self, call: Call[PageType]) -> AsyncIterator[PageType]:
        following: Call[PageType] | None = call
        while following is not None:
            page = await self._send(following)
            yield page
            following = calls.after(following, page)

    async def _lines(self, call: Call[Answer]) -> AsyncIterator[Answer]:
        lines = calls.Lines()
        async with aclosing(await self._respond(call, stream=True)) as response:
            with reaching(response.url, self._address.timeout):
                async for chunk in response.aiter_bytes():
                    for line in lines.of(chunk):
                        yield call.read(line)

    async def _respond(self, call: Call[Any], *, stream: bool = False) -> httpx2.Response:
        request = self._http.build_request(call.method, call.path, json=call.json, params=call.params)

        async def attempt() -> httpx2.Response:
            with reaching(request.url, self._address.timeout):
                response = await self._http.send(request, stream=stream)
                if response.is_success:
                    return response
                await response.aread()
                raise refusal(response)

        return await self._address.async_retrying(repeatable=call.repeatable)(attempt)

    def _shown(self, response: SearchResponse) -> SearchResults:
        return SearchResults(response, self._thumbnails)

    def _fetched(self, ids: Sequence[str]) -> list[bytes | None]:
        address = self._address
        with Client(address.url, key=address.key, timeout=address.timeout, retries=address.retries) as client:
            return client._thumbnails(ids)  # noqa: SLF001
