"""Searcher: answers over one snapshot with one encoder. Knows no HTTP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import ImageRecord
from indexer.encoder import Encoder
from indexer.errors import KindredError
from indexer.filters import LABELLED, Filter
from indexer.recall import QueryKind
from indexer.selection import Selection
from indexer.snapshot import Hit, Snapshot
from indexer.vote import vote
from service.errors import BadQuery, ItemNotFound, NoLabels

Vector = NDArray[np.float32]
"""Shape (dim,), length 1."""

Query = Sequence[Vector | str]
"""The parts of one query, which count equally: vectors, and ids of pictures in the index."""

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

    def vector(self, query: Query) -> Vector:
        """Return the vector of a query.

        Raises:
            ItemNotFound: the snapshot has no picture with one of the ids.
            BadQuery: its parts cancel each other out.
        """
        return combine([self.snapshot.vector(self.item(part)) if isinstance(part, str) else part for part in query])

    def search(self, queries: Sequence[Query], terms: Terms) -> list[list[Hit] | KindredError]:
        """Return the hits of each query, best first, or why it has no vector."""
        vectors: list[Vector] = []
        outcomes: list[list[Hit] | KindredError] = []
        for query in queries:
            try:
                vectors.append(self.vector(query))
                outcomes.append([])
            except KindredError as error:
                outcomes.append(error)
        if not vectors:
            return outcomes
        found = iter(
            self.snapshot.search(
                np.stack(vectors), terms.limit, terms.kind, selection=terms.selection, exact=terms.exact
            )
        )
        return [outcome if isinstance(outcome, KindredError) else next(found) for outcome in outcomes]

    def labelled(self, filter_: Filter | None) -> Selection:
        """Return the pictures that have a label, among those that a filter matches."""
        return self.snapshot.catalog.select((filter_ or Filter()).narrowed(LABELLED))

    def classify_zero_shot(self, query: Query, prompts: Mapping[str, Sequence[Vector]]) -> dict[str, float]:
        """Return the probability of each label, most probable first, from the vectors of the texts that describe it.

        A label's vector is the normalised mean of its prompts' vectors; the probabilities are the softmax of the
        scaled similarities, as in CLIP (Radford et al., ICML 2021).
        """
        classes = np.stack([combine(vectors) for vectors in prompts.values()])
        logits = self.encoder.logit_scale * (classes @ self.vector(query)).astype(np.float64)
        weights = np.exp(logits - logits.max())
        probabilities = dict(zip(prompts, (weights / weights.sum()).tolist(), strict=True))
        return dict(sorted(probabilities.items(), key=lambda item: (-item[1], item[0])))


def classify(neighbors: Sequence[Hit], temperature: float) -> dict[str, float]:
    """Return the probability of each label, most probable first, by the votes of labelled pictures; see `vote`.

    Raises:
        NoLabels: there are no voters.
    """
    if not neighbors:
        raise NoLabels("No picture that may vote has a label: build the snapshot with --labels, or filter less.")
    labels = [str(hit.image.label) for hit in neighbors]
    return vote(labels, np.array([hit.score for hit in neighbors], np.float32), temperature)


def combine(vectors: Sequence[Vector]) -> Vector:
    """Return the direction of the mean of unit vectors.

    Raises:
        BadQuery: they cancel each other out.
    """
    total: Vector = np.sum(vectors, axis=0)
    length = float(np.linalg.norm(total))
    if length < _SHORTEST:
        raise BadQuery("The parts of the query cancel each other out.")
    return total / np.float32(length)
