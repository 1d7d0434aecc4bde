"""Pictures in the index."""

from asyncio import to_thread
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from indexer.catalog import ImageRecord
from indexer.errors import ImageError
from indexer.filters import Filter
from indexer.images import DecodePolicy, decode
from service.cursor import Cursor, digest
from service.deps import AppSettings, CurrentSearcher, QueryMeans, asked
from service.errors import BadQuery, ItemGone
from service.limits import AwaitedRoute
from service.openapi import PROBLEMS, body
from service.query import encoded
from service.schemas.items import MOST_VALUES, BrowseRequest, BrowseResponse, FacetCount, IndexRef, Item, ItemDetail
from service.schemas.similarity import SimilarityMapRequest
from service.searcher import Searcher, Vector, combine
from service.similarity_map import similarity_map

router = APIRouter(prefix="/v1", tags=["items"], responses=PROBLEMS, route_class=AwaitedRoute)

# A stored picture is data, never a page: a browser shall not guess its type nor run what is in it.
_PICTURE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cache-Control": "private, max-age=3600",
    "Vary": "Authorization, api-key",
}


@router.get("/items")
async def browse(request: Annotated[BrowseRequest, Query()], means: QueryMeans) -> BrowseResponse:
    """List the pictures that a filter matches, a page at a time, and count their values of some keys."""
    searcher, pipeline = means.searcher, means.pipeline
    snapshot, catalog = searcher.snapshot, searcher.snapshot.catalog
    same = digest("items", "" if request.filter is None else request.filter.model_dump_json())
    after = -1
    if request.cursor is not None:
        after = max(Cursor.read(request.cursor, snapshot.manifest.id, same).rows, default=-1)
    among = None if request.filter is None else await pipeline.select(catalog, request.filter)
    total = len(snapshot) if among is None else among.count
    # One more than is shown tells whether there are more.
    found = await to_thread(catalog.page, among, after, request.limit + 1)
    shown = found[: request.limit]
    wanted = request.filter or Filter()
    counts = {key: await pipeline.scan(partial(catalog.facet, wanted, key, MOST_VALUES)) for key in request.facets}
    following = Cursor(snapshot=snapshot.manifest.id, request=same, rows=(shown[-1].row,)) if shown else None
    return BrowseResponse(
        items=[Item.of(image) for image in shown],
        total=total,
        facets={key: FacetCount.all(own) for key, own in counts.items()},
        next_cursor=following.encoded() if following and len(found) > len(shown) else None,
        index=IndexRef.of(searcher),
    )


@router.get("/items/{item_id}")
def item(item_id: str, searcher: CurrentSearcher) -> ItemDetail:
    """Describe one picture in the index."""
    return ItemDetail.of(searcher.item(item_id))


@router.get("/items/{item_id}/thumbnail", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
def thumbnail(item_id: str, searcher: CurrentSearcher) -> Response:
    """Return a small JPEG of one picture in the index."""
    data = searcher.snapshot.thumbnail(searcher.item(item_id))
    return Response(data, headers=_PICTURE_HEADERS, media_type="image/jpeg")


@router.get("/items/{item_id}/image", response_class=Response, responses={200: {"content": {"image/*": {}}}})
def image(item_id: str, searcher: CurrentSearcher, settings: AppSettings) -> Response:
    """Return the file of one picture in the index, if it is still the one that was indexed."""
    found = searcher.item(item_id)
    try:
        data = searcher.snapshot.original(found, DecodePolicy.of(settings))
    except ImageError as error:
        raise ItemGone(str(error)) from error
    return Response(data, headers=_PICTURE_HEADERS, media_type=found.media_type)


@router.post(
    "/items/{item_id}/similarity-map",
    openapi_extra=body(SimilarityMapRequest),
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
async def map_of(
    item_id: str, request: Annotated[SimilarityMapRequest, Depends(asked(SimilarityMapRequest))], means: QueryMeans
) -> Response:
    """Return a PNG to lay over a picture of the index: clear where it is least like a query, red where it is most."""
    searcher, policy = means.searcher, DecodePolicy.of(means.settings)
    found = await to_thread(searcher.item, item_id)
    query = combine(await encoded(request.query, means), [part.weight for part in request.query])
    png = await to_thread(_map, searcher, found, query, policy)
    return Response(png, headers=_PICTURE_HEADERS, media_type="image/png")


def _map(searcher: Searcher, found: ImageRecord, query: Vector, policy: DecodePolicy) -> bytes:
    data, _ = searcher.picture(found, policy)
    picture = decode(data, policy).rgb
    patches = searcher.encoder.patches(picture)
    if patches is None:
        raise BadQuery(
            f"The encoder {searcher.encoder.spec.name} does not tell what it sees in each part of a picture: only "
            "vision transformers of open_clip do, such as ViT-B-32."
        )
    height, width = picture.shape[:2]
    return similarity_map(patches, query, width, height)
