"""explained(): what carried a result: parts of the query, and words of its texts."""

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from indexer.encoder import Embeddings
from service.deps import Means
from service.question import Question
from service.schemas.items import Explanation, PartShare, WordEffect
from service.searcher import Vector, coefficients
from service.words import without_each

# Effects and shares are told to so many decimals, as scores are.
_DECIMALS = 6


async def explained(question: Question, rows: Sequence[int], means: Means) -> list[Explanation]:
    """Explain results.

    Args:
        question: what was asked.
        rows: of the results, in the embeddings.
        means: what it was answered with.

    Returns:
        An explanation of each.
    """
    texts = {place: part.text for place, part in question.places.items() if part.text is not None}
    shortened = [(place, word, rest) for place, text in texts.items() for word, rest in without_each(text)]
    with means.took("explain"):
        known = await means.pipeline.encode_texts(
            means.searcher.encoder, dict.fromkeys(rest for _, _, rest in shortened)
        )
        pictures = await asyncio.to_thread(lambda: means.searcher.snapshot.embeddings[list(rows)])
        parts = _parts(question, pictures)
        words = _words(question, shortened, known, pictures)
    return [Explanation(parts=own, words=effects) for own, effects in zip(parts, words, strict=True)]


def _parts(question: Question, pictures: Embeddings) -> list[list[PartShare]]:
    """Return what each part brings to each picture."""
    scores = pictures.astype(np.float64) @ np.stack(list(question.parts.values())).T
    shares = pictures.astype(np.float64) @ _summands(question).T
    return [
        [
            PartShare(part=place, score=_told(score), share=_told(share) if place.startswith("/query/") else None)
            for place, score, share in zip(question.parts, own_scores, own_shares, strict=True)
        ]
        for own_scores, own_shares in zip(scores.tolist(), shares.tolist(), strict=True)
    ]


def _summands(question: Question) -> NDArray[np.float64]:
    """Return what each part adds to the vector that is searched for, shape (parts, dim); their sum is that vector."""
    parts = np.stack(list(question.parts.values())).astype(np.float64)
    inside = [place.startswith("/query/") for place in question.places]
    weights = [part.weight for part in question.request.query]
    summands = np.zeros_like(parts)
    if weights:
        summands[inside] = coefficients(list(parts[inside]), weights)[:, None] * parts[inside]
    summands -= (summands @ question.basis.T) @ question.basis
    length = float(np.linalg.norm(summands.sum(axis=0)))
    scaled: NDArray[np.float64] = summands / length if length else summands
    return scaled


def _words(
    question: Question, shortened: Sequence[tuple[str, str, str]], known: Mapping[str, Vector], pictures: Embeddings
) -> list[list[WordEffect]]:
    """Return how much each picture's cosine to a text falls without each of the words (leave-one-out)."""
    if not shortened:
        return [[] for _ in pictures]
    losses = np.stack([question.parts[place] - known[rest] for place, _, rest in shortened])
    effects = (pictures.astype(np.float64) @ losses.T).tolist()
    return [
        [
            WordEffect(part=place, word=word, effect=_told(effect))
            for (place, word, _), effect in zip(shortened, own, strict=True)
        ]
        for own in effects
    ]


def _told(number: float) -> float:
    return round(number, _DECIMALS)
