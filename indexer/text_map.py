"""The map from texts to pictures: what of a picture's embedding a text explains.

Embeddings of texts lie apart from those of pictures, so that a text points past what it describes. The map turns a
text's vector into what pictures that it describes have of it. It is learnt from captions: Γ = C_IT (C_TT + εI)⁻¹, with
the uncentred second moments of captions and pictures (Ospanov, Jalali & Farnia, "Dissecting CLIP", 2024).

A search that shall not look at colours takes what the map makes of texts about colours out of its query; the index
stays as it is.
"""

import numpy as np
from numpy.typing import NDArray

from indexer.encoder import Embeddings

# Part of the mean variance of the captions.
_RIDGE = 1e-3
# Several texts have in common that they are texts, and of what sort ("a red thing", "a blue thing"): from so many on,
# only what they differ in is meant.
_SEVERAL = 3
# What texts differ in has few directions; those after a fall to this part of the first are noise. Measured on the demo
# collection, ten colours: the sixth has 0.64 of the first, the seventh 0.17.
_NOISE = 0.3


def fit_text_map(pictures: Embeddings, texts: Embeddings) -> Embeddings:
    """Learn a map from captioned pictures.

    Args:
        pictures: unit rows, shape (n, dim).
        texts: of their captions, unit rows, shape (n, dim); at least `dim` different ones make a map that is of use.

    Returns:
        Shape (dim, dim): `map @ text` is what a text explains of a picture.
    """
    own, other = texts.astype(np.float64), pictures.astype(np.float64)
    moments = own.T @ own
    moments[np.diag_indices_from(moments)] += _RIDGE * np.trace(moments) / len(moments)
    return np.linalg.solve(moments, own.T @ other).T.astype(np.float32)


def text_directions(texts: Embeddings, text_map: Embeddings | None) -> NDArray[np.float64]:
    """Return the directions, in the space of pictures, of what some texts are about.

    A query q without these is q - U Uᵀ q. Of three texts or more it is what they differ in that counts: name several
    colours to take colour out, and not one.

    Args:
        texts: unit rows, shape (n, dim), n at least 1.
        text_map: of a snapshot; without one, the texts' own vectors are taken.

    Returns:
        U with orthonormal columns, shape (dim, r), r at most n and at least 1.
    """
    vectors = np.unique(texts, axis=0).astype(np.float64)
    if len(vectors) >= _SEVERAL:
        vectors -= vectors.mean(axis=0)
    mapped = vectors.T if text_map is None else text_map.astype(np.float64) @ vectors.T
    directions, strengths, _ = np.linalg.svd(mapped, full_matrices=False)
    kept: NDArray[np.float64] = directions[:, strengths >= _NOISE * strengths[0]]
    return kept
