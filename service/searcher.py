"""Searcher: answers over one snapshot with one encoder. Knows no HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import ImageRecord
from indexer.encoder import Embeddings, Encoder
from indexer.errors import ImageError
from indexer.images import DecodePolicy
from indexer.recall import QueryKind
from indexer.relevance import Calibration
from indexer.selection import Selection
from indexer.snapshot import Hit, Snapshot
from indexer.text_map import text_directions
from indexer.vote import vote
from service.errors import BadQuery, ItemNotFound, NoLabels

Vector = NDArray[np.float32]
"""Shape (dim,), length 1."""

# Below this length the sum of unit vectors is rounding noise, with no direction of its own.
_SHORTEST = 1e-6


@dataclass(frozen=True)
class Terms:
    """How to search: see `Snapshot.search`."""

    limit: int
    kind: QueryKind
    selection: Selection | None = None
    exact: bool = False


# Compared by identity: two searchers are never equal, and comparing their embeddings would read all of them.
@dataclass(frozen=True, eq=False)
class Searcher:
    """One snapshot and the encoder of its queries. Both stay the same for the life of a Searcher."""

    snapshot: Snapshot
    encoder: Encoder

    def item(self, image_id: str) -> ImageRecord:
        """Return the record of a picture.

        Raises:
            ItemNotFound: the snapshot has none with this id.
        """
        image = self.snapshot.catalog.get(image_id)
        if image is None:
            raise ItemNotFound(f"The current snapshot has no picture {image_id!r}.")
        return image

    def calibration(self, kind: QueryKind) -> Calibration | None:
        """Return how relevant a score of a kind of query is, if the build learnt it with the encoder in use."""
        learnt = self.snapshot.manifest.relevance
        if learnt is None or (kind is QueryKind.TEXT and not self._as_built):
            return None
        return learnt.of(kind)

    def directions(self, texts: Embeddings) -> Vector:
        """Return an orthonormal basis of what texts say of pictures, shape (n, dim): see `text_directions`."""
        learnt = self.snapshot.text_map if self._as_built else None
        return text_directions(texts, learnt).T.astype(np.float32)

    @property
    def _as_built(self) -> bool:
        """Whether texts are encoded as they were when the build learnt from them."""
        return self.encoder.spec.text == self.snapshot.manifest.encoder.text

    def picture(self, image: ImageRecord, policy: DecodePolicy) -> tuple[bytes, bool]:
        """Return the file of a picture of the index, or else its thumbnail; whether it is the file."""
        try:
            return self.snapshot.original(image, policy), True
        except ImageError:
            return self.snapshot.thumbnail(image), False

    def search(self, vectors: Sequence[Vector], terms: Terms) -> list[list[Hit]]:
        """Return the hits of each query, best first."""
        return self.snapshot.search(
            np.stack(vectors), terms.limit, terms.kind, selection=terms.selection, exact=terms.exact
        )


def classify(neighbors: Sequence[Hit], temperature: float) -> dict[str, float]:
    """Return the probability of each label, most probable first, by the votes of labelled pictures; see `vote`.

    Raises:
        NoLabels: there are no voters.
    """
    if not neighbors:
        raise NoLabels("No picture that may vote has a label: build the snapshot with --labels, or filter less.")
    labels = [str(hit.image.label) for hit in neighbors]
    return vote(labels, np.array([hit.score for hit in neighbors], np.float32), temperature)


def combine(vectors: Sequence[Vector], weights: Sequence[float] | None = None) -> Vector:
    """Return the direction of unit vectors put together, which count equally without weights.

    Raises:
        BadQuery: they cancel each other out.
    """
    total = coefficients(vectors, weights or [1.0] * len(vectors)) @ np.stack(vectors).astype(np.float64)
    length = float(np.linalg.norm(total))
    if length < _SHORTEST:
        raise BadQuery("The parts of the query cancel each other out.")
    unit: Vector = (total / length).astype(np.float32)
    return unit


def coefficients(vectors: Sequence[Vector], weights: Sequence[float]) -> NDArray[np.float64]:
    """Return how much of each unit vector is in a composed query, shape (n,).

    Those of weights above 0 are summed and scaled to length 1: p. Each n of a weight -w takes away what p has of it,
    w max(0, p . n) n; at w = 1 nothing of it is left. To subtract w n instead would take what texts have in common out
    of a text: "a red star - a moon" then finds red stars for a third of what it finds so (`make language-bench`). Where
    no weight is above 0, the vectors are summed as they are.
    """
    parts, own = np.stack(vectors).astype(np.float64), np.array(weights, np.float64)
    wanted = np.maximum(own, 0) @ parts
    length = float(np.linalg.norm(wanted))
    if length < _SHORTEST:
        return own
    return np.where(own > 0, own / length, own * np.maximum(parts @ wanted / length, 0))
