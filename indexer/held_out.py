"""held_out(): queries that an index is tuned with, of each kind: as people ask, and not what is indexed."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
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


def held_out(catalog: Catalog, thumbnails: NDArray[np.uint8], encoder: Encoder) -> dict[QueryKind, Queries]:
    """Make up to 256 queries of each kind.

    Queries of pictures are the thumbnails of pictures spread over the catalogue, cropped, and mirrored half the time.
    Those of texts are captions, or else labels put into sentences, or else phrases that come with kindred. The same
    catalogue and encoder give the same queries.

    Args:
        catalog: of a snapshot, which has one picture at least.
        thumbnails: the bytes of its thumbnails, one JPEG after the other.
        encoder: that made its embeddings.
    """
    records = catalog.rows(_spread(range(len(catalog)), _MOST))
    pictures = _augmented(records, thumbnails)
    texts, origin = _texts(catalog)
    return {
        QueryKind.IMAGE: Queries(
            "crops of pictures",
            _encoded(lambda images: encoder.encode_images([encoder.preprocess(image) for image in images]), pictures),
        ),
        QueryKind.TEXT: Queries(origin, _encoded(encoder.encode_texts, texts)),
    }


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


def _texts(catalog: Catalog) -> tuple[Sequence[str], str]:
    """Return distinct texts and what they were made from: the first source that has enough of them."""
    for origin, texts in (("captions", _captions(catalog)), ("labels", _labelled(catalog))):
        if len(texts) >= _FEWEST_TEXTS:
            return _spread(texts, _MOST), origin
    return _spread(_PHRASES.read_text().splitlines(), _MOST), "bundled phrases"


def _captions(catalog: Catalog) -> list[str]:
    records = catalog.rows(_spread(range(len(catalog)), _CAPTIONED))
    return list(dict.fromkeys(record.caption for record in records if record.caption))


def _labelled(catalog: Catalog) -> list[str]:
    labels = [label.replace("_", " ") for label in _spread(list(catalog.label_counts()), _MOST)]
    return list(dict.fromkeys(template.format(label) for label in labels for template in _TEMPLATES))


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most so many items, spread evenly."""
    places = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(np.int64)
    return [items[place] for place in places.tolist()]


def _encoded(encode: Callable[[list[Any]], Embeddings], items: Iterable[Any]) -> Embeddings:
    everything = list(items)
    starts = range(0, len(everything), BATCH_SIZE)
    return np.concatenate([encode(everything[start : start + BATCH_SIZE]) for start in starts])
