"""What the methods of a client take: the fields of the requests in `service.schemas`, with pictures in any form."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from indexer.filters import Filter
from service.schemas.parts import QueryPart

Picture = str | Path | bytes | Image | NDArray[np.uint8]
"""A path, the bytes of a picture file, a PIL image, or pixels of shape (height, width) or (height, width, 3 or 4)."""
Part = Mapping[str, Any] | QueryPart
"""A part of a query, with the fields of `WeightedPart`; its `image` is a `Picture`."""
FilterLike = Mapping[str, Any] | Filter


class SearchOptions(TypedDict, total=False):
    """A picture, the id of one in the index, and the fields of `SearchRequest`, which says what they mean.

    `image` and `id` are parts of the query, beside those of `query`: a list, or the same in short.
    """

    image: Picture | None
    id: str | None
    query: Sequence[Part] | str | None
    all_of: Sequence[Part]
    any_of: Sequence[Part]
    none_of: Sequence[Part]
    suppress: Sequence[str]
    limit: int
    filter: FilterLike | None
    exact: bool
    min_score: float | None
    min_relevance: float | None
    collapse_duplicates: bool | float
    diversity: float
    group_by: str | None
    group_size: int
    facets: Sequence[str]
    cursor: str | None
    explain: bool


class Search(SearchOptions, total=False):
    """The arguments of `Client.search`, for several searches at once."""

    text: str | None


class PartOptions(TypedDict, total=False):
    """The fields of `QueryPart` beside `text`."""

    image: Picture | None
    image_url: str | None
    id: str | None
    vector: Sequence[float] | NDArray[np.float32] | None
    region: Mapping[str, Any] | None


class ClassifyOptions(PartOptions, total=False):
    """The fields of `ClassifyRequest` beside `text`."""

    k: int
    temperature: float
    filter: FilterLike | None
    min_confidence: float


class ZeroShotOptions(PartOptions, total=False):
    """The fields of `ZeroShotRequest` beside `labels` and `text`."""

    descriptors: Mapping[str, Sequence[str]]
    none_of_these: bool
    false_rejects: float


class ReindexOptions(TypedDict, total=False):
    """The fields of `ReindexRequest`."""

    sources: Sequence[str]
    labels: str
    index: str
    model: str
    pretrained: str


class BrowseOptions(TypedDict, total=False):
    """The parameters of `GET /v1/items`."""

    filter: FilterLike | None
    limit: int
    facets: Sequence[str]
