"""The map: pictures on a grid whose neighbours look alike."""

from asyncio import to_thread
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends

from indexer.catalog import ImageRecord
from indexer.selection import Selection
from service.deps import QueryMeans, asked
from service.layout import Grid, sorted_grid
from service.limits import AwaitedRoute
from service.openapi import PROBLEMS, body
from service.schemas.items import IndexRef
from service.schemas.map import MapRequest, MapResponse, Placed
from service.searcher import Searcher

router = APIRouter(prefix="/v1", tags=["map"], responses=PROBLEMS, route_class=AwaitedRoute)


@router.post("/map", openapi_extra=body(MapRequest))
async def lay_out(request: Annotated[MapRequest, Depends(asked(MapRequest))], means: QueryMeans) -> MapResponse:
    """Lay pictures out on a grid where neighbours look alike."""
    searcher, took = means.searcher, means.took
    with took("select"):
        among = None
        if request.filter is not None:
            among = await means.pipeline.select(searcher.snapshot.catalog, request.filter)
        images = await to_thread(_images, request, searcher, among)
    with took("sort"):
        grid = await to_thread(_grid, images, searcher)
    return MapResponse(
        columns=grid.columns,
        rows=grid.rows,
        items=[
            Placed.of(image, row=cell // grid.columns, column=cell % grid.columns)
            for image, cell in zip(images, grid.cells.tolist(), strict=True)
        ],
        index=IndexRef.of(searcher),
        took_ms=took.took_ms(),
    )


def _images(request: MapRequest, searcher: Searcher, among: Selection | None) -> list[ImageRecord]:
    if request.ids is not None:
        return [searcher.item(image_id) for image_id in dict.fromkeys(request.ids)]
    rows = np.arange(len(searcher.snapshot)) if among is None else among.rows()
    # Spread evenly: a collection often lies in folders, and the first ones are all alike.
    chosen = rows[np.linspace(0, len(rows) - 1, min(request.limit, len(rows))).astype(np.int64)]
    return searcher.snapshot.catalog.rows(chosen.tolist())


def _grid(images: Sequence[ImageRecord], searcher: Searcher) -> Grid:
    if not images:
        return Grid(0, 0, np.empty(0, np.int64))
    return sorted_grid(searcher.snapshot.embeddings[[image.row for image in images]])
