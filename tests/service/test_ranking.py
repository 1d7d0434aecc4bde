"""What is left out of the nearest pictures and how the rest is arranged, against plain loops."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.catalog import ImageRecord
from indexer.encoder import Embeddings
from indexer.snapshot import Hit
from service.ranking import Arrangement, Candidate, arrange, counted, values_of
from tests.snapshots import unit, unit_vectors

COUNT, DIM = 60, 8
LABELS = ("cat", "dog", None, "bird")


def record(row: int, group: str | None = None) -> ImageRecord:
    return ImageRecord(
        row=row,
        id=f"{row:04x}",
        path=f"{row}.png",
        content_hash="00" * 32,
        media_type="image/png",
        width=8,
        height=8,
        thumbnail=(0, 0),
        label=LABELS[row * 7 % 4],
        metadata={"tags": [row % 2, row % 3], "deep": {"n": row % 5, "sure": row % 2 == 0}},
        group=group,
    )


def candidates(scores: Sequence[float], groups: Sequence[str | None] | None = None) -> list[Candidate]:
    """Return pictures 0, 1, ... with these scores, best first; their relevance is half as great as their score."""
    hits = [Hit(record(row, groups[row] if groups else None), score) for row, score in enumerate(scores)]
    return sorted(
        (Candidate(hit, hit.score / 2) for hit in hits), key=lambda each: (-each.hit.score, each.hit.image.id)
    )


def world(seed: int) -> tuple[list[Candidate], Embeddings]:
    """Return candidates for a query among vectors some of which are nearly the same."""
    random = np.random.default_rng(seed)
    vectors = unit_vectors(COUNT, DIM, seed)
    copies = random.choice(COUNT, 20, replace=False)
    vectors[copies] = unit(vectors[random.permutation(copies)] + 0.01 * random.normal(size=(20, DIM)))
    return candidates((vectors @ unit_vectors(1, DIM, seed + 1)[0]).round(6).tolist()), vectors


def rows(chosen: Sequence[Candidate]) -> list[int]:
    return [candidate.row for candidate in chosen]


def test_what_is_below_a_cut_off_is_left_out_and_counted() -> None:
    ten = candidates([0.9, 0.8, 0.5, 0.4, 0.1])
    page = arrange(ten, (), 10, Arrangement(min_score=0.5), unit_vectors(5, DIM))
    assert (rows(page.chosen), rows(page.passed), page.cut) == ([0, 1, 2], [0, 1, 2], 2)
    page = arrange(ten, (), 10, Arrangement(min_relevance=0.4), unit_vectors(5, DIM))
    assert (rows(page.chosen), page.cut) == ([0, 1], 3)


def test_only_the_best_of_a_group_of_near_duplicates_is_shown() -> None:
    found = candidates([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], ["a", None, "a", "b", "b", "a"])
    page = arrange(found, (), 10, Arrangement(collapse_duplicates=True), unit_vectors(6, DIM))
    assert (rows(page.chosen), page.duplicates) == ([0, 1, 3], Counter({0: 2, 3: 1}))


@given(st.integers(0, 50), st.sampled_from([0.5, 0.9, 0.99]))
def test_near_duplicates_by_cosine_are_those_of_a_better_one_that_is_shown(seed: int, least: float) -> None:
    found, vectors = world(seed)
    page = arrange(found, (), COUNT, Arrangement(collapse_duplicates=least), vectors)
    kept: list[int] = []
    for row in rows(found):
        if not any(vectors[row] @ vectors[other] >= least for other in kept):
            kept.append(row)
    assert rows(page.chosen) == kept
    assert page.duplicates.total() == COUNT - len(kept)


@given(st.integers(0, 50), st.sampled_from([0.1, 0.5, 1.0]))
def test_diversity_is_maximal_marginal_relevance(seed: int, diversity: float) -> None:
    found, vectors = world(seed)
    page = arrange(found, (), 12, Arrangement(diversity=diversity), vectors)
    scores = {candidate.row: candidate.hit.score for candidate in found}
    low, high = min(scores.values()), max(scores.values())
    chosen: list[int] = []
    while len(chosen) < 12:
        gains = {
            row: (1 - diversity) * (scores[row] - low) / (high - low)
            - diversity * max((float(vectors[row] @ vectors[other]) for other in chosen), default=-1.0)
            for row in scores
            if row not in chosen
        }
        best = max(gains.values())
        # Equal gains may differ in the last decimal.
        assert gains[rows(page.chosen)[len(chosen)]] == pytest.approx(best, abs=1e-6)
        chosen.append(rows(page.chosen)[len(chosen)])


def test_no_more_of_a_value_are_shown_than_asked_for_and_pictures_without_one_are_all() -> None:
    found = candidates(np.linspace(0.9, 0.1, 12).tolist())
    page = arrange(found, (), 12, Arrangement(group_by="label", group_size=2), unit_vectors(12, DIM))
    labels = [candidate.hit.image.label for candidate in found]
    wanted = [row for row in range(12) if labels[row] is None or labels[:row].count(labels[row]) < 2]
    assert rows(page.chosen) == wanted


@given(
    st.integers(0, 30),
    st.lists(st.integers(1, 9), min_size=1, max_size=20),
    st.booleans() | st.sampled_from([0.9]),
    st.sampled_from([0.0, 0.4]),
    st.sampled_from([None, "label", "metadata.tags"]),
)
def test_pages_never_overlap_and_leave_nothing_out_that_one_page_would_show(
    seed: int, sizes: list[int], collapse: bool | float, diversity: float, group_by: str | None
) -> None:
    found, vectors = world(seed)
    how = Arrangement(collapse_duplicates=collapse, diversity=diversity, group_by=group_by, group_size=3)
    shown: list[int] = []
    for size in sizes:
        shown += rows(arrange(found, shown, size, how, vectors).chosen)
    assert len(set(shown)) == len(shown)
    whole = rows(arrange(found, (), sum(sizes), how, vectors).chosen)
    # With diversity, scores are rescaled to those that are left, so that the order of later pages is their own.
    assert (shown == whole) if not diversity else len(shown) == len(whole) or group_by is not None or collapse


def test_values_of_columns_and_of_metadata_are_counted_each_for_itself() -> None:
    images = [record(row) for row in range(6)]
    assert [image.label for image in images] == ["cat", "bird", None, "dog", "cat", "bird"]
    assert counted(images, "label") == [("bird", 2), ("cat", 2), ("dog", 1)]
    assert counted(images, "metadata.deep.sure") == [(False, 3), (True, 3)]
    assert counted(images, "metadata.deep.n") == [(0, 2), (1, 1), (2, 1), (3, 1), (4, 1)]
    # 0 and 1 stand in both places of an array, and count once for a picture.
    assert counted(images, "metadata.tags") == [(0, 4), (1, 4), (2, 2)]
    assert counted(images, "metadata.none") == []
    assert values_of(images[0], "metadata.deep") == []
