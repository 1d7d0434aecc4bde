"""From the parts of a query to vectors of length 1, and from these to one."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from textwrap import shorten

import numpy as np

from indexer.encoder import Encoder
from indexer.images import DecodePolicy
from indexer.recall import QueryKind
from indexer.sources.fetch import FetchPolicy, fetch
from indexer.sources.retries import Patience
from service.deps import Means
from service.errors import BadQuery
from service.pipeline import File
from service.schemas.parts import Picture, QueryPart
from service.searcher import Searcher, Vector, combine

# Longer texts are split in a thread: a megabyte of text takes long to tokenise.
_LONG_TEXT = 500


async def query_of(parts: Sequence[QueryPart], means: Means) -> Vector:
    """Return the vector of parts that count equally."""
    return combine(await encoded(parts, means))


async def encoded(parts: Sequence[QueryPart], means: Means) -> list[Vector]:
    """Return the vector of each part.

    Raises:
        ItemNotFound: the snapshot has no picture with one of the ids.
        ImageError: one of the pictures is none that can be used, or cannot be fetched.
        BadQuery: a vector is not of the index, or no picture may be fetched.
    """
    pictures = [part.region or part for part in parts if part.region or part.image is not None or part.image_url]
    texts = [part.text for part in parts if part.text is not None]
    images = iter(await _images(pictures, means))
    known = await _texts(texts, means) if texts else {}
    ids = [part.id for part in parts if part.id is not None]
    stored = await asyncio.to_thread(_stored, ids, means.searcher) if ids else {}

    def vector(part: QueryPart) -> Vector:
        if part.text is not None:
            return known[part.text]
        if part.id is not None:
            return stored[part.id]
        return next(images) if part.vector is None else _given(part.vector, means.searcher.encoder.spec.dim)

    return [vector(part) for part in parts]


def kind_of(parts: Iterable[QueryPart]) -> QueryKind:
    """Return the kind that a query is searched for as."""
    return QueryKind.TEXT if any(part.text is not None for part in parts) else QueryKind.IMAGE


async def directions(texts: Sequence[str], means: Means) -> Vector:
    """Return an orthonormal basis of what texts say of pictures, shape (n, dim), for `without`."""
    if not texts:
        return np.empty((0, means.searcher.encoder.spec.dim), np.float32)
    known = await _texts(texts, means)
    return means.searcher.directions(np.stack([known[text] for text in texts]))


def without(vector: Vector, basis: Vector) -> Vector:
    """Return a vector without what it has of some directions: prompt nullification on the side of the query.

    q' = q - U U'q, of length 1, with U the directions: the embeddings of pictures are left as they are, so any index
    serves it (after Ospanov, Jalali & Farnia, "Dissecting CLIP", 2024, who take a text out of each picture).

    Args:
        vector: of length 1, shape (dim,).
        basis: orthonormal rows, shape (n, dim).

    Raises:
        BadQuery: nothing is left.
    """
    if not len(basis):
        return vector
    try:
        return combine([vector - basis.T @ (basis @ vector)])
    except BadQuery as error:
        raise BadQuery("Nothing is left of the query once what is to be suppressed is taken out of it.") from error


async def _images(pictures: Sequence[Picture], means: Means) -> list[Vector]:
    if not pictures:
        return []
    encoder, took = means.searcher.encoder, means.took
    files = await asyncio.gather(*(_file(picture, means) for picture in pictures))
    with took("decode"):
        pixels = await means.pipeline.decode(encoder, files)
    with took("encode"):
        return await means.pipeline.encode_images(encoder, pixels)


async def _file(picture: Picture, means: Means) -> File:
    box = getattr(picture, "box", None)
    if picture.image is not None:
        return picture.image, box
    with means.took("fetch"):
        if picture.image_url is not None:
            return await asyncio.to_thread(_fetched, picture.image_url, means), box
        return await asyncio.to_thread(_original, str(picture.id), means), box


def _fetched(url: str, means: Means) -> bytes:
    settings = means.settings
    if not settings.query_hosts:
        raise BadQuery(
            "This service fetches no pictures: send the picture itself, or have its operator name the hosts that "
            "image_url may name in KINDRED_QUERY_HOSTS."
        )
    patience = Patience(attempts=1, total_seconds=settings.deadline_seconds)
    return fetch(url, FetchPolicy(settings.query_hosts, patience=patience), settings.max_body_bytes)


def _original(image_id: str, means: Means) -> bytes:
    """Return the file of a picture in the index, or its thumbnail where the file is gone."""
    data, whole = means.searcher.picture(means.searcher.item(image_id), DecodePolicy.of(means.settings))
    if not whole:
        means.notes.append(f"The file of picture {image_id} is gone or has changed; its thumbnail was looked at.")
    return data


async def _texts(texts: Sequence[str], means: Means) -> Mapping[str, Vector]:
    """Encode texts; one that the encoder does not read at once in pieces, whose mean is its vector."""
    encoder = means.searcher.encoder
    with means.took("encode"):
        pieces = {text: await _pieces(text, encoder) for text in texts}
        known = await means.pipeline.encode_texts(encoder, dict.fromkeys(chain.from_iterable(pieces.values())))
    for text, own in pieces.items():
        if len(own) > 1:
            means.notes.append(
                f"The text {shorten(text, 40, placeholder='...')!r} is longer than the encoder reads at once: it was "
                f"read in {len(own)} pieces, which count equally."
            )
    return {
        text: known[text] if len(own) == 1 else combine([known[piece] for piece in own]) for text, own in pieces.items()
    }


async def _pieces(text: str, encoder: Encoder) -> list[str]:
    return encoder.segments(text) if len(text) <= _LONG_TEXT else await asyncio.to_thread(encoder.segments, text)


def _stored(ids: Sequence[str], searcher: Searcher) -> dict[str, Vector]:
    return {image_id: searcher.snapshot.vector(searcher.item(image_id)) for image_id in ids}


def _given(numbers: Sequence[float], dim: int) -> Vector:
    if len(numbers) != dim:
        raise BadQuery(f"A vector has {len(numbers)} numbers, and embeddings of this index {dim}.")
    vector = np.array(numbers, np.float64)
    longest = np.abs(vector).max()
    if not longest:
        raise BadQuery("A vector of zeros points nowhere.")
    return combine([vector / longest])  # whatever its length: the square of a large number may be infinite
