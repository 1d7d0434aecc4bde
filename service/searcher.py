"""Searcher: answers over one snapshot with one encoder. Knows no HTTP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import ImageRecord
from indexer.encoder import Encoder
from indexer.images import RGB
from indexer.recall import QueryKind
from indexer.snapshot import Hit, Snapshot
from indexer.vote import vote
from service.errors import BadQuery, ItemNotFound, NoLabels

Vector = NDArray[np.float32]
"""Shape (dim,), length 1."""

# Below this length the sum of unit vectors is rounding noise, with no direction of its own.
_SHORTEST = 1e-6


@dataclass(frozen=True)
class Classification:
    """Class probabilities, most probable first, and the neighbours that voted, nearest first."""

    probabilities: dict[str, float]
    neighbors: list[Hit]


@dataclass(frozen=True)
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

    def encode_image(self, picture: RGB) -> Vector:
        """Encode an upright RGB picture, shape (height, width, 3)."""
        vector: Vector = self.encoder.encode_images([self.encoder.preprocess(picture)])[0]
        return vector

    def encode_text(self, text: str) -> Vector:
        """Encode a text."""
        vector: Vector = self.encoder.encode_texts([text])[0]
        return vector

    def classify(
        self, vector: Vector, kind: QueryKind, k: int, temperature: float, without: str | None = None
    ) -> Classification:
        """Let the k nearest labelled pictures vote; see `indexer.vote.vote`.

        Args:
            vector: the query.
            kind: what it was made of.
            k: how many neighbours vote.
            temperature: see `vote`.
            without: id of a picture that may not vote, since it is the one to classify.

        Raises:
            NoLabels: the snapshot has no labels.
        """
        labelled = self.snapshot.catalog.select("label IS NOT NULL")
        (found,) = self.snapshot.search(vector[None, :], k + (without is not None), kind, selection=labelled)
        neighbors = [hit for hit in found if hit.image.id != without][:k]
        if not neighbors:
            raise NoLabels("No picture of the current snapshot has a label; build it with --labels.")
        labels = [str(hit.image.label) for hit in neighbors]
        scores = np.array([hit.score for hit in neighbors], np.float32)
        return Classification(vote(labels, scores, temperature), neighbors)

    def classify_zero_shot(self, vector: Vector, prompts: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Return the probability of each label, most probable first, from the texts that describe it.

        A label's vector is the normalised mean of its prompts' vectors; the probabilities are the softmax of the
        scaled similarities, as in CLIP (Radford et al., ICML 2021).
        """
        classes = np.stack([combine(self.encoder.encode_texts(texts)) for texts in prompts.values()])
        logits = self.encoder.logit_scale * (classes @ vector).astype(np.float64)
        weights = np.exp(logits - logits.max())
        probabilities = dict(zip(prompts, (weights / weights.sum()).tolist(), strict=True))
        return dict(sorted(probabilities.items(), key=lambda item: (-item[1], item[0])))


def combine(vectors: Sequence[Vector] | NDArray[np.float32]) -> Vector:
    """Return the direction of the mean of unit vectors, shape (n, dim).

    Raises:
        BadQuery: they cancel each other out.
    """
    total: Vector = np.sum(vectors, axis=0)
    length = float(np.linalg.norm(total))
    if length < _SHORTEST:
        raise BadQuery("The parts of the query cancel each other out.")
    return total / np.float32(length)
