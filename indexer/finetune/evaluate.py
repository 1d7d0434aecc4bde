"""Measures an exported model by the truth of the demo collection and, where given, on photographs."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from indexer import demo
from indexer.encoder import Embeddings, Encoder, EncoderName, load_encoder
from indexer.vote import vote

_BATCH = 64
_NEIGHBOURS, _TEMPERATURE = 21, 0.1
_FOUND = 10
_CROPS, _AREA = 50, 0.8


@dataclass(frozen=True)
class Crops:
    """How many of `asked` crops found their source first among `photos`."""

    photos: int
    asked: int
    centred: int
    anywhere: int


@dataclass(frozen=True)
class Figures:
    """What a model does on the default demo collection; all but `crops` are between 0 and 1.

    `precision` is the mean over the fixed queries of the part of the first ten that is right, `worst_precision` that
    of the worst query. `accuracy` is of the kind told by the 21 nearest others, weighted by exp(similarity / 0.1).
    `instance_map` and `instance_recall` are of finding the other pictures of the same instance by a picture: mean
    average precision, and how often the nearest is one.
    """

    precision: float
    worst_precision: float
    accuracy: float
    instance_map: float
    instance_recall: float
    crops: Crops | None


def evaluate(folder: Path, photos: Path | None = None, seed: int = 0) -> Figures:
    """Measure the model in `folder` on the demo collection, and on the JPEG photographs below `photos`."""
    encoder = load_encoder(EncoderName(model=f"local-dir:{folder}"), device="cpu", threads=1)
    pictures = list(demo.collection(seed=seed))
    embeddings = _encode(encoder, (picture.image for picture in pictures))
    precisions = _precisions(encoder, pictures, embeddings, demo.queries(seed=seed))
    similarities = embeddings @ embeddings.T
    np.fill_diagonal(similarities, -np.inf)
    instances = np.array([picture.instance.name for picture in pictures])
    instance_map, instance_recall = _retrieval(similarities, instances)
    return Figures(
        precision=float(precisions.mean()),
        worst_precision=float(precisions.min()),
        accuracy=_accuracy(similarities, np.array([picture.instance.kind for picture in pictures])),
        instance_map=instance_map,
        instance_recall=instance_recall,
        crops=None if photos is None else _crops(encoder, photos, seed),
    )


def _encode(encoder: Encoder, images: Iterable[Image.Image]) -> Embeddings:
    """Encode RGB pictures."""
    pixels = [encoder.preprocess(image) for image in images]
    return np.concatenate([encoder.encode_images(pixels[i : i + _BATCH]) for i in range(0, len(pixels), _BATCH)])


def _precisions(
    encoder: Encoder, pictures: list[demo.Picture], embeddings: Embeddings, queries: list[demo.Query]
) -> npt.NDArray[np.float64]:
    """Return for each query the part of the first ten that shows the right kind in the right colour."""
    pairs = np.array([f"{picture.instance.colour} {picture.instance.kind}" for picture in pictures])
    wanted = np.array([f"{query.colour} {query.kind}" for query in queries])
    scores = encoder.encode_texts([query.text for query in queries]) @ embeddings.T
    first = np.argsort(-scores, axis=1, kind="stable")[:, :_FOUND]
    return np.asarray((pairs[first] == wanted[:, None]).mean(axis=1))


def _accuracy(similarities: Embeddings, labels: npt.NDArray[np.str_]) -> float:
    """Return how often the vote of the nearest others is right."""
    nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :_NEIGHBOURS]
    scores = np.take_along_axis(similarities, nearest, axis=1)
    votes = [
        next(iter(vote(labels[near].tolist(), score, _TEMPERATURE)))
        for near, score in zip(nearest, scores, strict=True)
    ]
    return float((np.array(votes) == labels).mean())


def _retrieval(similarities: Embeddings, labels: npt.NDArray[np.str_]) -> tuple[float, float]:
    """Return the mean average precision, and how often the nearest has the same label."""
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :-1]  # each itself comes last
    right = labels[order] == labels[:, None]
    precision = right.cumsum(axis=1) / np.arange(1, right.shape[1] + 1)
    return float(((precision * right).sum(axis=1) / right.sum(axis=1)).mean()), float(right[:, 0].mean())


def _crops(encoder: Encoder, folder: Path, seed: int) -> Crops:
    """Look for photographs by crops that keep four fifths of their area."""
    paths = sorted(folder.rglob("*.jpg"))
    embeddings = _encode(encoder, map(_open, paths))
    rng = np.random.default_rng(seed)
    asked = rng.choice(len(paths), size=min(_CROPS, len(paths)), replace=False)
    found = np.zeros(2, np.int64)
    for source in asked:
        image = _open(paths[source])
        crops = [_crop(image, 0.5, 0.5), _crop(image, *rng.random(2).tolist())]
        found += (_encode(encoder, crops) @ embeddings.T).argmax(axis=1) == source
    return Crops(len(paths), len(asked), *found.tolist())


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _crop(image: Image.Image, x: float, y: float) -> Image.Image:
    """Cut a crop whose free place, left to right and top to bottom, is taken by `x` and `y` (0 to 1)."""
    side = _AREA**0.5
    width, height = round(image.width * side), round(image.height * side)
    left, top = round((image.width - width) * x), round((image.height - height) * y)
    return image.crop((left, top, left + width, top + height))
