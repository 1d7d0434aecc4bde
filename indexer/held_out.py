"""Held-out queries, to measure a snapshot with: as people ask, and not what is indexed."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from indexer.ahead import BATCH_SIZE
from indexer.catalog import Catalog, ImageRecord
from indexer.encoder import Embeddings, Encoder
from indexer.recall import QueryKind
from indexer.tuning import Queries

_PHRASES = Path(__file__).parent / "phrases.txt"
_MOST = 256
# Fewer texts than this say little; another source of them is taken.
_FEWEST_TEXTS = 32
# Pictures whose captions are looked at, since many pictures may have the same one, or none.
_CAPTIONED = 4_096
# A crop keeps this part of the area.
_LEAST_AREA, _MOST_AREA = 0.6, 0.9
_TEMPLATES = (
    "a photo of a {}",
    "{}",
    "a picture of a {}",
    "a close-up of a {}",
    "a photo of many {}",
    "a {} in the background",
    "a black and white photo of a {}",
    "a bright photo of a {}",
    "a {} seen from above",
    "a small {}",
    "a drawing of a {}",
    "a photo of the {} at night",
)

Item = TypeVar("Item")


@dataclass(frozen=True)
class SourcedQueries(Queries):
    """Queries of which it is known what they were made from: the id of a picture, or a label or a caption, of each."""

    sources: tuple[str, ...]


def held_out(catalog: Catalog, thumbnails: NDArray[np.uint8], encoder: Encoder) -> dict[QueryKind, Queries]:
    """Make up to 256 queries of each kind.

    Queries of texts are captions, or else labels put into sentences, or else phrases that come with kindred. The same
    catalogue and encoder give the same queries.

    Args:
        catalog: of a snapshot, which has one picture at least.
        thumbnails: the bytes of its thumbnails, one JPEG after the other.
        encoder: that made its embeddings.
    """
    return {QueryKind.IMAGE: crops(catalog, thumbnails, encoder), QueryKind.TEXT: _texts(catalog, encoder)}


def crops(catalog: Catalog, thumbnails: NDArray[np.uint8], encoder: Encoder) -> SourcedQueries:
    """Make up to 256 queries of pictures: thumbnails over the whole catalogue, cropped, and mirrored half the time."""
    records = catalog.rows(spread(range(len(catalog)), _MOST))
    pictures = _augmented(records, thumbnails)
    vectors = _encoded(lambda images: encoder.encode_images([encoder.preprocess(image) for image in images]), pictures)
    return SourcedQueries("crops of pictures", vectors, tuple(record.id for record in records))


def label_sentences(catalog: Catalog, encoder: Encoder) -> SourcedQueries:
    """Make up to 256 queries of labels put into sentences."""
    return _sourced("labels", _labelled(catalog), encoder)


def captions(catalog: Catalog, encoder: Encoder) -> SourcedQueries:
    """Make up to 256 queries of captions."""
    return _sourced("captions", _captions(catalog), encoder)


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most so many items, spread evenly."""
    places = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(np.int64)
    return [items[place] for place in places.tolist()]


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> Embeddings:
    """Encode texts in batches, shape (n, dim)."""
    return _encoded(encoder.encode_texts, texts) if texts else np.empty((0, encoder.spec.dim), np.float32)


def _augmented(records: Iterable[ImageRecord], thumbnails: NDArray[np.uint8]) -> Iterator[Image.Image]:
    random = np.random.default_rng(0)
    for record in records:
        offset, size = record.thumbnail
        with Image.open(io.BytesIO(thumbnails[offset : offset + size].tobytes())) as image:
            side = sqrt(random.uniform(_LEAST_AREA, _MOST_AREA))
            width, height = max(round(image.width * side), 1), max(round(image.height * side), 1)
            left = int(random.integers(image.width - width + 1))
            top = int(random.integers(image.height - height + 1))
            crop = image.convert("RGB").crop((left, top, left + width, top + height))
            yield ImageOps.mirror(crop) if random.integers(2) else crop


def _texts(catalog: Catalog, encoder: Encoder) -> Queries:
    """Return queries of texts from the first source that has enough of them."""
    for origin, texts in (("captions", _captions(catalog)), ("labels", _labelled(catalog))):
        if len(texts) >= _FEWEST_TEXTS:
            return _sourced(origin, texts, encoder)
    return Queries("bundled phrases", encode_texts(encoder, spread(_PHRASES.read_text().splitlines(), _MOST)))


def _sourced(origin: str, texts: Mapping[str, str], encoder: Encoder) -> SourcedQueries:
    """Return queries of some texts, given with what each was made from."""
    chosen = spread(list(texts), _MOST)
    return SourcedQueries(origin, encode_texts(encoder, chosen), tuple(texts[text] for text in chosen))


def _captions(catalog: Catalog) -> dict[str, str]:
    records = catalog.rows(spread(range(len(catalog)), _CAPTIONED))
    return {record.caption: record.caption for record in records if record.caption}


def _labelled(catalog: Catalog) -> dict[str, str]:
    labels = spread(list(catalog.label_counts()), _MOST)
    # Of labels that read alike, the last is the source, wherever the first stands.
    return {template.format(label.replace("_", " ")): label for label in labels for template in _TEMPLATES}


def _encoded(encode: Callable[[list[Any]], Embeddings], items: Iterable[Any]) -> Embeddings:
    everything = list(items)
    starts = range(0, len(everything), BATCH_SIZE)
    return np.concatenate([encode(everything[start : start + BATCH_SIZE]) for start in starts])
