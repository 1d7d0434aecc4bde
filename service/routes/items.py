"""Pictures in the index."""

from fastapi import APIRouter, Response

from indexer.errors import ImageError
from indexer.images import DecodePolicy
from service.deps import AppSettings, CurrentSearcher
from service.errors import ItemGone
from service.limits import AwaitedRoute
from service.openapi import PROBLEMS
from service.schemas.items import ItemDetail

router = APIRouter(prefix="/v1", responses=PROBLEMS, route_class=AwaitedRoute)

# A stored picture is data, never a page: a browser shall not guess its type nor run what is in it.
_PICTURE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cache-Control": "private, max-age=3600",
}


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
