"""Call: what a client sends, and how it reads what comes back. Knows no connection, so that both clients share it."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, Unpack
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json

from service.client_options import (
    BrowseOptions,
    ClassifyOptions,
    FilterLike,
    Part,
    Picture,
    ReindexOptions,
    Search,
    SearchOptions,
    ZeroShotOptions,
)
from service.client_wire import BadArgument, KindredApiError, of_problem
from service.schemas.admin import JobInfo, SnapshotInfo
from service.schemas.classify import ClassifyResponse, ZeroShotResponse
from service.schemas.embeddings import EmbeddingsResponse
from service.schemas.index import IndexResponse
from service.schemas.items import BrowseResponse, ItemDetail, Result
from service.schemas.search import BatchResponse, SearchResponse
from service.shorthand import parse

# What one request for embeddings may hold, in inputs and in characters of base64: under the service's own limits.
_MOST_INPUTS, _MOST_CHARACTERS = 256, 15 * 2**20
# PNG has no other colours than those of a screen.
_OTHER_COLOURS = frozenset({"CMYK", "YCbCr", "LAB", "HSV"})

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One request.

    Attributes:
        read: from the body of its answer, or a line of it, to what is answered.
        repeatable: whether to send it again changes nothing, so that it may be when the service is busy.
    """

    method: str
    path: str
    read: Callable[[bytes], Answer]
    json: Mapping[str, Any] | None = None
    params: Mapping[str, str | int] | None = None
    repeatable: bool = True


class Page(Protocol):
    """An answer that others may follow."""

    @property
    def next_cursor(self) -> str | None:
        """What brings the next one."""
        ...


PageType = TypeVar("PageType", bound=Page)


def after(call: Call[PageType], page: PageType) -> Call[PageType] | None:
    """Return the call for the page after one; None if that was the last."""
    if page.next_cursor is None:
        return None
    cursor = {"cursor": page.next_cursor}
    if call.method == "GET":
        return replace(call, params={**(call.params or {}), **cursor})
    return replace(call, json={**(call.json or {}), **cursor})


class Lines:
    """Puts together the lines of an answer that comes in pieces; httpx2's own would cut a caption at U+2028."""

    def __init__(self) -> None:
        self._rest = b""

    def of(self, piece: bytes) -> list[bytes]:
        """Return the lines that a piece completes."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return lines


def search(text: str | None, **options: Unpack[SearchOptions]) -> Call[SearchResponse]:
    """Search."""
    return Call("POST", "v1/search", _reader(SearchResponse), _searched(text, **options))


def export(text: str | None, **options: Unpack[SearchOptions]) -> Call[Result]:
    """Search for many results; each line of the answer is one."""
    return Call("POST", "v1/search/export", _reader(Result), _searched(text, **options))


def search_batch(searches: Iterable[Search]) -> Call[list[SearchResponse | KindredApiError]]:
    """Search several times; a search that fails is answered with its error."""
    return Call("POST", "v1/search/batch", _batched, {"searches": [_searched(**each) for each in searches]})


def classify(text: str | None, **options: Unpack[ClassifyOptions]) -> Call[ClassifyResponse]:
    """Classify by the votes of neighbours."""
    return Call("POST", "v1/classify", _reader(ClassifyResponse), _part({"text": text, **options}))


def zero_shot(
    labels: Sequence[str] | Mapping[str, Sequence[str]], text: str | None, **options: Unpack[ZeroShotOptions]
) -> Call[ZeroShotResponse]:
    """Classify into labels that are only described in words."""
    body = _part({"labels": labels, "text": text, **options})
    return Call("POST", "v1/classify/zero-shot", _reader(ZeroShotResponse), body)


def embed(texts: Sequence[str], images: Sequence[Picture]) -> list[Call[NDArray[np.float32]]]:
    """Encode texts and pictures, as few requests as the service's limits allow; each answer is of shape (n, dim)."""
    inputs = [*texts, *(f"data:;base64,{_base64(image)}" for image in images)]
    if not inputs:
        raise BadArgument("There is nothing to encode: give texts or images.")
    batches: list[list[str]] = [[]]
    size = 0
    for each in inputs:
        size += len(each)
        if batches[-1] and (len(batches[-1]) == _MOST_INPUTS or size > _MOST_CHARACTERS):
            batches.append([])
            size = len(each)
        batches[-1].append(each)
    return [
        Call("POST", "v1/embeddings", _embedded, {"input": batch, "encoding_format": "base64"}) for batch in batches
    ]


def items(**options: Unpack[BrowseOptions]) -> Call[BrowseResponse]:
    """Browse the pictures of the index."""
    params: dict[str, str | int] = {}
    if options.get("filter") is not None:
        params["filter"] = to_json(_filter(options["filter"])).decode()
    if "limit" in options:
        params["limit"] = options["limit"]
    if options.get("facets"):
        params["facets"] = ",".join(options["facets"])
    return Call("GET", "v1/items", _reader(BrowseResponse), params=params)


def item(item_id: str) -> Call[ItemDetail]:
    """Describe one picture."""
    return Call("GET", f"v1/items/{_quoted(item_id)}", _reader(ItemDetail))


def thumbnail(item_id: str) -> Call[bytes]:
    """Fetch the small JPEG of one picture."""
    return Call("GET", f"v1/items/{_quoted(item_id)}/thumbnail", _unread)


def index() -> Call[IndexResponse]:
    """Describe the served snapshot."""
    return Call("GET", "v1/index", _reader(IndexResponse))


def reindex(options: ReindexOptions) -> Call[JobInfo]:
    """Start to build a new snapshot."""
    return Call("POST", "admin/v1/reindex", _reader(JobInfo), dict(options), repeatable=False)


def job(job_id: str) -> Call[JobInfo]:
    """Tell how far a reindex is."""
    return Call("GET", f"admin/v1/jobs/{_quoted(job_id)}", _reader(JobInfo))


def snapshots() -> Call[list[SnapshotInfo]]:
    """List the snapshots."""
    return Call("GET", "admin/v1/snapshots", _reader(list[SnapshotInfo]))


def activate(snapshot_id: str) -> Call[IndexResponse]:
    """Make a snapshot current."""
    path = f"admin/v1/snapshots/{_quoted(snapshot_id)}/activate"
    return Call("POST", path, _reader(IndexResponse), repeatable=False)


def _searched(text: str | None = None, **options: Unpack[SearchOptions]) -> dict[str, Any]:
    """Return the body of a search: text, image, id and the parts of `query` are parts of one query, in this order."""
    query = options.get("query") or ()
    try:
        further = parse(query) if isinstance(query, str) else query
    except ValueError as error:
        raise BadArgument(f"The query {query!r} cannot be read: {error}.") from error
    given = {"text": text, "image": options.get("image"), "id": options.get("id")}
    parts = [*({name: value} for name, value in given.items() if value is not None), *further]
    body = {name: value for name, value in options.items() if name not in given and value is not None}
    for name in {"all_of", "any_of", "none_of"} & body.keys():
        body[name] = [_part(part) for part in options[name]]  # type: ignore[literal-required]
    if options.get("filter") is not None:
        body["filter"] = _filter(options["filter"])
    return {**body, "query": [_part(part) for part in parts]}


def _part(part: Part) -> dict[str, Any]:
    """Return a part as it is sent: pictures in base64, vectors as lists."""
    fields = part.model_dump(exclude_defaults=True) if isinstance(part, BaseModel) else part
    body = {name: value for name, value in fields.items() if value is not None}
    if "image" in body:
        body["image"] = _base64(body["image"])
    if "vector" in body:
        body["vector"] = np.asarray(body["vector"], np.float64).tolist()
    if "filter" in body:
        body["filter"] = _filter(body["filter"])
    if "region" in body:
        body["region"] = _part(body["region"])
    return body


def _filter(wanted: FilterLike | None) -> Mapping[str, Any] | None:
    if isinstance(wanted, BaseModel):
        return wanted.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return wanted


def _base64(picture: Picture) -> str:
    return base64.b64encode(_file(picture)).decode("ascii")


def _file(picture: Picture) -> bytes:
    """Return a picture as a file: as it is, or as PNG."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | Path):
        return Path(picture).expanduser().read_bytes()
    image = _image(picture) if isinstance(picture, np.ndarray) else ImageOps.exif_transpose(picture)
    buffer = io.BytesIO()
    (image.convert("RGB") if image.mode in _OTHER_COLOURS else image).save(buffer, "PNG")
    return buffer.getvalue()


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in {2, 3} or pixels.shape[2:] not in {(), (3,), (4,)}:
        raise BadArgument(
            "A picture in an array is of type uint8 and shape (height, width), (height, width, 3) or "
            f"(height, width, 4), not of type {pixels.dtype} and shape {pixels.shape}."
        )
    return Image.fromarray(pixels)


def _reader(model: type[Answer]) -> Callable[[bytes], Answer]:
    adapter = TypeAdapter(model)
    # A newer service may tell more than this client knows.
    return lambda content: adapter.validate_json(content, extra="ignore")


def _batched(content: bytes) -> list[SearchResponse | KindredApiError]:
    results = _reader(BatchResponse)(content).results
    return [each.answer or of_problem(each.status, each.problem) for each in results]


def _unread(content: bytes) -> bytes:
    return content


def _embedded(content: bytes) -> NDArray[np.float32]:
    rows = sorted(_reader(EmbeddingsResponse)(content).data, key=lambda row: row.index)
    return np.stack([np.frombuffer(base64.b64decode(str(row.embedding)), "<f4") for row in rows]).astype(np.float32)


def _quoted(name: str) -> str:
    return quote(name, safe="")
