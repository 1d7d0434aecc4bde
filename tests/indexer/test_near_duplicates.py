"""Near-duplicates: the groups that comparing every picture with every other would make, in far less time."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from indexer import near_duplicates
from indexer.encoder import Embeddings, EncoderName, load_encoder
from indexer.images import perceptual_hash
from indexer.near_duplicates import DISTANCE, SIMILARITY, group_near_duplicates
from tests.pictures import encode
from tests.snapshots import unit, unit_vectors


def by_comparing_all(hashes: NDArray[np.uint64], embeddings: Embeddings, similarity: float, distance: int) -> list[int]:
    """Group rows in their order, each with the first picture that it is like: what the module's docstring says."""
    firsts: list[int] = []
    groups = [-1] * len(hashes)
    for row in range(len(hashes)):
        for first in firsts:
            bits = (int(hashes[row]) ^ int(hashes[first])).bit_count()
            cosine = float(embeddings[row].astype(np.float64) @ embeddings[first].astype(np.float64))
            if bits <= distance and round(cosine, 6) >= similarity:
                groups[first] = groups[row] = first
                break
        else:
            firsts.append(row)
    return groups


def grouped(
    hashes: NDArray[np.uint64], embeddings: Embeddings, similarity: float = 0.9, distance: int = 8
) -> list[int]:
    """Group rows, as a list."""
    firsts = group_near_duplicates(hashes, embeddings, similarity=similarity, distance=distance)
    return [int(first) for first in firsts]


def copies(count: int, seed: int) -> tuple[NDArray[np.uint64], Embeddings]:
    """Draw pictures of which most are changed copies of others, in hash and in embedding, more or less."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    vectors = rng.normal(size=(count, 8))
    for row in range(1, count):
        if rng.random() < 0.8:
            origin = rng.integers(row)
            bits = rng.choice(64, rng.integers(0, 8), replace=False).astype(np.uint64)
            hashes[row] = hashes[origin] ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0))
            vectors[row] = vectors[origin] + rng.normal(size=8) * rng.choice([0, 0.1, 0.5])
    return hashes, unit(vectors)


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_those_that_comparing_all_makes(seed: int) -> None:
    hashes, embeddings = copies(400, seed)
    expected = by_comparing_all(hashes, embeddings, 0.9, 8)
    assert grouped(hashes, embeddings) == expected
    assert len(set(expected)) > 30


@pytest.mark.parametrize("distance", [0, 1, 2, 3, 4, 5, 7, 10])
def test_no_pair_within_the_distance_is_missed_wherever_its_bits_are(distance: int) -> None:
    rng = np.random.default_rng(distance)
    one = rng.integers(0, 2**64, 300, dtype=np.uint64)
    flips = [rng.choice(64, distance + pair % 2, replace=False).astype(np.uint64) for pair in range(300)]
    masks = [np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0)) for bits in flips]
    hashes = np.concatenate([one, one ^ np.array(masks, np.uint64)])
    embeddings = np.tile(unit_vectors(1, 4), (600, 1))
    # Of the pairs, those of even number differ in `distance` bits, the others in one more.
    expected = [pair if pair % 2 == 0 else -1 for pair in range(300)] * 2
    assert grouped(hashes, embeddings, distance=distance) == expected


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**6 - 1), st.integers(0, 3)), max_size=40),
    st.integers(0, 57),
    st.integers(0, 4),
)
def test_crowded_hashes_are_grouped_as_by_comparing_all(
    pictures: list[tuple[int, int]], shift: int, reach: int
) -> None:
    hashes = np.array([bits << shift for bits, _ in pictures], np.uint64)
    embeddings = unit_vectors(4, 3)[[look for _, look in pictures]] if pictures else np.empty((0, 3), np.float32)
    expected = by_comparing_all(hashes, embeddings, 0.9, reach)
    assert grouped(hashes, embeddings, distance=reach) == expected


def test_a_chain_of_small_changes_does_not_join_unlike_ends() -> None:
    angles = np.arange(5) * 0.3
    embeddings = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    # cos(0.3) = 0.955, cos(0.6) = 0.825
    assert grouped(np.zeros(5, np.uint64), embeddings) == [0, 0, 2, 2, -1]


def test_a_picture_that_is_like_two_firsts_joins_the_earlier() -> None:
    embeddings = unit(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    assert grouped(np.zeros(3, np.uint64), embeddings, similarity=0.7) == [0, -1, 0]


def test_either_likeness_alone_is_not_enough() -> None:
    same, opposite = unit(np.ones((2, 4))), unit(np.array([[1.0, 0.0], [-1.0, 0.0]]))
    assert grouped(np.array([0, 2**64 - 1], np.uint64), same) == [-1, -1]
    assert grouped(np.zeros(2, np.uint64), opposite) == [-1, -1]


def test_equal_embeddings_have_a_cosine_of_one_whatever_rounding_does() -> None:
    embeddings = np.repeat(unit_vectors(200, 512), 2, axis=0)
    expected = [row - row % 2 for row in range(400)]
    assert grouped(np.zeros(400, np.uint64), embeddings, similarity=1.0) == expected


def test_memory_mapped_embeddings_make_the_same_groups(tmp_path: Path) -> None:
    hashes, embeddings = copies(300, 0)
    np.save(tmp_path / "e.npy", embeddings)
    assert grouped(hashes, np.load(tmp_path / "e.npy", mmap_mode="r")) == grouped(hashes, embeddings)


def test_identical_pictures_take_time_in_proportion_to_their_number() -> None:
    embeddings = np.broadcast_to(unit_vectors(1, 16), (50_000, 16))
    start = time.process_time()
    # Comparing all of them would be 1.25 billion cosines.
    assert grouped(np.zeros(50_000, np.uint64), embeddings) == [0] * 50_000
    assert time.process_time() - start < 10


def test_a_hash_of_very_many_unlike_pictures_costs_no_comparison_of_all_with_all() -> None:
    embeddings = np.concatenate([np.eye(600, dtype=np.float32)] * 2)
    # The first 256 are compared with every later one, and their copies are found; the others are left alone.
    expected = [*range(256), *[-1] * 344] * 2
    assert grouped(np.zeros(1_200, np.uint64), embeddings) == expected


@pytest.mark.parametrize("distance", [0, 1, 6, 8, 9])
def test_each_pair_of_near_hashes_is_met_once(distance: int) -> None:
    hashes = np.unique(copies(500, 0)[0])
    bits = np.bitwise_count(hashes[:, None] ^ hashes)
    expected = {(one, other) for one, other in np.argwhere(bits <= distance).tolist() if one < other}
    pairs = np.concatenate([*near_duplicates._near_pairs(hashes, distance)], axis=1).T.tolist()
    assert sorted(tuple(sorted(pair)) for pair in pairs) == sorted(expected)


def test_work_cut_into_small_blocks_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes, embeddings = copies(400, 0)
    expected = grouped(hashes, embeddings)
    monkeypatch.setattr(near_duplicates, "_BLOCK", 7)
    assert grouped(hashes, embeddings, distance=8) == expected


def test_changed_copies_of_real_photographs_are_found_and_others_are_not(real_data: Path) -> None:
    encoder = load_encoder(EncoderName(model="demo"), device="cpu", threads=1)
    paths = [min(folder.iterdir()) for folder in sorted((real_data / "photos/caltech101").iterdir())]
    changed = []
    for path in paths:
        original = Image.open(path).convert("RGB")
        half = original.resize((original.width // 2, original.height // 2))
        changed += [original, half, Image.open(io.BytesIO(encode(original, "JPEG", quality=60)))]
    hashes = np.array([perceptual_hash(image) for image in changed], np.uint64)
    embeddings = encoder.encode_images([encoder.preprocess(image) for image in changed])
    found = np.array(grouped(hashes, embeddings, SIMILARITY, DISTANCE))
    expected = np.arange(len(changed)) // 3 * 3
    assert np.mean(found == expected) > 0.98
    assert ((found == expected) | (found == -1)).all()
