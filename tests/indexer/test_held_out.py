"""Queries to tune with: crops of pictures, and texts as people type them."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.encoder import Encoder
from indexer.held_out import _PHRASES, _augmented, held_out
from indexer.recall import QueryKind
from indexer.snapshot import Snapshot
from indexer.store import SnapshotStore
from tests.conftest import build_snapshot
from tests.snapshots import unit_vectors, write_snapshot


def opened(snapshots: Path) -> Snapshot:
    store = SnapshotStore(snapshots)
    return store.open(store.published())


def test_each_picture_of_a_small_collection_gives_one_query_that_is_near_it_and_not_it(
    snapshots: Path, encoder: Encoder
) -> None:
    snapshot = opened(snapshots)
    found = held_out(snapshot.catalog, snapshot.thumbnails, encoder)[QueryKind.IMAGE]
    assert found.vectors.shape == (24, 16)
    assert found.origin == "crops of pictures"
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    own = (found.vectors * snapshot.embeddings).sum(axis=1)
    assert own.max() < 1 - 1e-7
    # Of 24 pictures in three colours, a crop is nearer to its own than to most.
    others = found.vectors @ snapshot.embeddings.T
    assert (own > np.median(others, axis=1)).mean() > 0.9


def test_the_same_snapshot_gives_the_same_queries(snapshots: Path, encoder: Encoder) -> None:
    snapshot = opened(snapshots)
    one, other = (held_out(snapshot.catalog, snapshot.thumbnails, encoder) for _ in range(2))
    for kind in QueryKind:
        np.testing.assert_array_equal(one[kind].vectors, other[kind].vectors)


def test_crops_keep_most_of_the_area_and_half_of_them_are_mirrored(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint8), (100, 1))
    buffer = io.BytesIO()
    Image.fromarray(np.stack([ramp] * 3, axis=2)).save(buffer, "JPEG", quality=95)
    store = SnapshotStore(tmp_path / "s")
    write_snapshot(store, unit_vectors(200, 4))
    records = opened(store.folder).catalog.rows(range(200))
    thumbnails = np.frombuffer(buffer.getvalue(), np.uint8)
    whole = [replace(record, thumbnail=(0, len(thumbnails))) for record in records]
    crops = list(_augmented(whole, thumbnails))
    shares = [crop.width * crop.height / 20_000 for crop in crops]
    assert 0.58 < min(shares) < 0.63
    assert 0.87 < max(shares) < 0.92
    mirrored = [np.asarray(crop)[0, 0, 0] > np.asarray(crop)[0, -1, 0] for crop in crops]
    assert 0.4 < np.mean(mirrored) < 0.6
    assert len({(crop.size, np.asarray(crop)[0, 0, 0]) for crop in crops}) > 150


def test_of_a_large_collection_256_pictures_are_taken_from_its_beginning_to_its_end(
    tmp_path: Path, encoder: Encoder
) -> None:
    store = SnapshotStore(tmp_path / "s")
    write_snapshot(store, unit_vectors(1_000, 16))
    snapshot = opened(store.folder)
    assert len(held_out(snapshot.catalog, snapshot.thumbnails, encoder)[QueryKind.IMAGE].vectors) == 256


def test_texts_are_captions_where_there_are_enough(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    rows = [f"{path.relative_to(source)},a picture number {number}" for number, path in enumerate(_pictures(source))]
    for number, path in enumerate(_pictures(source)):
        path.with_name(f"copy{number}.png").write_bytes(path.read_bytes())
        rows.append(f"{path.parent.name}/copy{number}.png,another picture with number {number}")
    table = tmp_path / "captions.csv"
    table.write_text("\n".join(["path,caption", *rows]) + "\n")
    build_snapshot(source, tmp_path / "s", encoder, labels=str(table))
    snapshot = opened(tmp_path / "s")
    found = held_out(snapshot.catalog, snapshot.thumbnails, encoder)[QueryKind.TEXT]
    assert found.origin == "captions"
    captions = [row.split(",")[1] for row in rows]
    expected = encoder.encode_texts(captions)
    assert len(found.vectors) == 48
    # The same vectors, in the order of the catalogue.
    np.testing.assert_allclose((found.vectors @ expected.T).max(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose((expected @ found.vectors.T).max(axis=1), 1, atol=1e-5)


def test_labels_are_put_into_sentences_where_there_are_no_captions(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    build_snapshot(source, tmp_path / "s", encoder, labels="parent")
    snapshot = opened(tmp_path / "s")
    found = held_out(snapshot.catalog, snapshot.thumbnails, encoder)[QueryKind.TEXT]
    assert found.origin == "labels"
    assert len(found.vectors) == 36
    wanted = encoder.encode_texts(["a photo of a red", "a photo of a green", "blue"])
    np.testing.assert_allclose((wanted @ found.vectors.T).max(axis=1), 1, atol=1e-5)


def test_bundled_phrases_do_where_there_is_neither(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    build_snapshot(source, tmp_path / "s", encoder, labels=None)
    snapshot = opened(tmp_path / "s")
    found = held_out(snapshot.catalog, snapshot.thumbnails, encoder)[QueryKind.TEXT]
    assert (found.origin, len(found.vectors)) == ("bundled phrases", 256)


def test_the_bundled_phrases_are_enough_and_distinct() -> None:
    phrases = _PHRASES.read_text().splitlines()
    assert len(phrases) >= 250
    assert len({phrase.strip().lower() for phrase in phrases} - {""}) == len(phrases)


@pytest.mark.parametrize("size", [(1, 1), (1, 300)])
def test_the_thinnest_picture_can_be_cropped(size: tuple[int, int], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, "JPEG")
    store = SnapshotStore(tmp_path / "s")
    write_snapshot(store, unit_vectors(1, 4))
    thumbnails = np.frombuffer(buffer.getvalue(), np.uint8)
    records = opened(store.folder).catalog.rows([0])
    (crop,) = _augmented([replace(records[0], thumbnail=(0, len(thumbnails)))], thumbnails)
    assert min(crop.size) >= 1


def _pictures(source: Path) -> list[Path]:
    return sorted(source.glob("*/[0-9].png"))
