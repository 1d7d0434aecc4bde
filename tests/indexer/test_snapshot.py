"""Snapshots: search answers as numpy does, and no damage of any file goes unseen."""

import dataclasses
import hashlib
import json
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from indexer.encoder import Embeddings
from indexer.errors import CorruptSnapshot, ImageError, Reason
from indexer.index import Rows, VectorIndex
from indexer.shards import SkippedPicture
from indexer.skipped import KnownSkip, SkippedWriter
from indexer.snapshot import CHECKSUM, MANIFEST, Snapshot, checksum, file_facts
from indexer.store import SnapshotStore
from tests.pictures import POLICY
from tests.snapshots import THUMBNAIL, replace, search, unit_vectors, write_snapshot

FILES = ["catalog.sqlite", "embeddings.npy", "index.faiss", "skipped.parquet", "text_map.npy", "thumbnails.bin"]
FACTORIES = ["Flat", "IVF4,Flat", "HNSW8", "SQ8"]


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """Name a folder that is not there yet."""
    return SnapshotStore(tmp_path / "snapshots")


def opened(store: SnapshotStore, vectors: Embeddings, **facts: Any) -> Snapshot:
    """Write a snapshot and open it."""
    return store.open(write_snapshot(store, vectors, **facts))


def cosines(vectors: Embeddings, query: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return exact cosine similarities, to the six decimals that answers have."""
    found: NDArray[np.float64] = np.round(vectors.astype(np.float64) @ query.astype(np.float64), 6)
    return found


def ranked(vectors: Embeddings, ids: list[str], query: NDArray[np.float32]) -> list[str]:
    """Sort all ids by cosine, ties by id."""
    scores = cosines(vectors, query)
    return [ids[row] for row in sorted(range(len(ids)), key=lambda row: (-scores[row], ids[row]))]


# Search


@pytest.mark.parametrize("limit", [1, 10, 299])
def test_an_exact_search_is_a_sort_of_everything(store: SnapshotStore, limit: int) -> None:
    vectors, ids = unit_vectors(300, 16), [f"{row * 7919 % 300:03}" for row in range(300)]
    snapshot = opened(store, vectors, ids=ids)
    for query in unit_vectors(10, 16, seed=1):
        assert [hit.image.id for hit in search(snapshot, query, limit)] == ranked(vectors, ids, query)[:limit]


@pytest.mark.parametrize("factory", FACTORIES)
def test_scores_are_true_cosines_whatever_the_index_stores(store: SnapshotStore, factory: str) -> None:
    vectors = unit_vectors(300, 16)
    snapshot = opened(store, vectors, factory=factory)
    for query in unit_vectors(10, 16, seed=1):
        hits = search(snapshot, query, 10)
        scores = [hit.score for hit in hits]
        assert scores == pytest.approx([cosines(vectors, query)[hit.image.row] for hit in hits], abs=1e-5)
        assert scores == sorted(scores, reverse=True)
        assert len({hit.image.id for hit in hits}) == len(hits) > 0


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_picture_finds_itself_with_score_1(store: SnapshotStore, factory: str) -> None:
    snapshot = opened(store, unit_vectors(300, 64), factory=factory)
    for image in snapshot.catalog.rows(range(0, 300, 17)):
        (hit,) = search(snapshot, snapshot.vector(image), 1)
        assert (hit.image, hit.score) == (image, 1.0)


def test_an_opposite_picture_scores_minus_1(store: SnapshotStore) -> None:
    vectors = unit_vectors(3, 8)
    assert search(opened(store, vectors), -vectors[0], 3)[-1].score == -1.0


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
@pytest.mark.parametrize("limit", [1, 5, 199, 200, 201])
def test_ties_come_by_id_even_where_the_limit_cuts_them(store: SnapshotStore, factory: str, limit: int) -> None:
    vectors = unit_vectors(300, 16)
    vectors[50:250] = vectors[0]
    ids = [f"{row * 7919 % 300:03}" for row in range(300)]
    twins = sorted([ids[0], *ids[50:250]])
    hits = search(opened(store, vectors, ids=ids, factory=factory), vectors[0], limit)
    assert [hit.image.id for hit in hits] == twins[:limit]
    assert {hit.score for hit in hits} == {1.0}


def test_a_tie_at_the_limit_is_settled_by_a_few_more_hits(store: SnapshotStore) -> None:
    vectors = unit_vectors(2_000, 16)
    vectors[7:10] = vectors[7]
    snapshot = opened(store, vectors)
    asked: list[int] = []

    class Watched(VectorIndex):
        def search(self, vectors: Embeddings, k: int, *rest: Any) -> Rows:
            asked.append(k)
            return super().search(vectors, k, *rest)

    watched = dataclasses.replace(snapshot, index=Watched(faiss.read_index(str(snapshot.folder / "index.faiss"))))
    assert [hit.image.row for hit in search(watched, vectors[8], 2)] == [7, 8]
    assert asked == [3, 6]


def test_exact_duplicates_have_one_score_for_every_query(store: SnapshotStore) -> None:
    # Seven, since BLAS adds up the last rows of a matrix in another order than those before.
    snapshot = opened(store, np.repeat(unit_vectors(1, 64), 7, axis=0))
    for query in unit_vectors(500, 64, seed=1):
        hits = search(snapshot, query, 7)
        assert len({hit.score for hit in hits}) == 1
        assert [hit.image.row for hit in hits] == [0, 1, 2, 3, 4, 5, 6]


def test_a_smaller_limit_gives_the_beginning_of_the_same_answer(store: SnapshotStore) -> None:
    vectors = np.repeat(unit_vectors(60, 24), 3, axis=0)
    snapshot = opened(store, vectors)
    for query in unit_vectors(20, 24, seed=1):
        everything = search(snapshot, query, 180)
        assert [search(snapshot, query, limit) for limit in (1, 2, 7, 40)] == [everything[:n] for n in (1, 2, 7, 40)]


def test_only_labelled_pictures_are_found_where_that_is_asked(store: SnapshotStore) -> None:
    vectors, ids = unit_vectors(300, 16), [f"{row:03}" for row in range(300)]
    labels = ["cat" if row % 50 == 7 else None for row in range(300)]
    snapshot = opened(store, vectors, ids=ids, labels=labels)
    for query in unit_vectors(10, 16, seed=1):
        expected = [name for name in ranked(vectors, ids, query) if int(name) % 50 == 7]
        assert [hit.image.id for hit in search(snapshot, query, 4, labelled=True)] == expected[:4]
        assert [hit.image.id for hit in search(snapshot, query, 50, labelled=True)] == expected


def test_without_labels_no_labelled_picture_is_found(store: SnapshotStore) -> None:
    snapshot = opened(store, unit_vectors(20, 16))
    assert search(snapshot, snapshot.vector(snapshot.catalog.rows([0])[0]), 5, labelled=True) == []


@pytest.mark.parametrize("limit", [3, 4, 1_000])
def test_a_limit_beyond_the_collection_returns_all_of_it(store: SnapshotStore, limit: int) -> None:
    vectors = unit_vectors(3, 16)
    assert len(search(opened(store, vectors), vectors[0], limit)) == 3


def test_searches_in_threads_answer_as_one_by_one(store: SnapshotStore) -> None:
    snapshot = opened(store, unit_vectors(300, 16), labels=["a", None] * 150)
    queries = unit_vectors(100, 16, seed=1)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: search(snapshot, query, 5, labelled=True), queries))
    assert found == [search(snapshot, query, 5, labelled=True) for query in queries]


# What a snapshot holds


def test_a_snapshot_gives_back_what_was_written(store: SnapshotStore) -> None:
    vectors = unit_vectors(5, 16)
    snapshot = opened(store, vectors, labels=["a", None, "b", "a", None])
    images = snapshot.catalog.rows(range(5))
    assert len(snapshot) == 5
    assert (np.stack([snapshot.vector(image) for image in images]) == vectors).all()
    assert [snapshot.thumbnail(image) for image in images] == [THUMBNAIL] * 5
    assert [image.label for image in images] == ["a", None, "b", "a", None]


def test_the_embeddings_are_a_file_of_numpy(store: SnapshotStore) -> None:
    vectors = unit_vectors(5, 16)
    found = np.load(store.folder / write_snapshot(store, vectors) / "embeddings.npy")
    assert (found.dtype, found.tolist()) == (np.float32, vectors.tolist())


def test_the_manifest_tells_what_was_built(store: SnapshotStore) -> None:
    snapshot_id = write_snapshot(store, unit_vectors(40, 16), factory="HNSW8", skipped=["a.png", "ü.png"])
    manifest = json.loads((store.folder / snapshot_id / MANIFEST).read_bytes())
    assert (manifest["format"], manifest["id"], manifest["count"]) == (3, snapshot_id, 40)
    assert (manifest["factory"], manifest["encoder"]["dim"], manifest["skipped"]) == ("HNSW8", 16, {"empty": 2})


def test_the_manifest_lists_every_file_with_its_size_and_hash(store: SnapshotStore) -> None:
    folder = store.folder / write_snapshot(store, unit_vectors(5, 16))
    listed = json.loads((folder / MANIFEST).read_bytes())["files"]
    assert sorted(listed) == FILES == sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    for name, facts in listed.items():
        data = (folder / name).read_bytes()
        assert facts == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_skipped_files_are_written_down_whatever_their_names(store: SnapshotStore) -> None:
    names = ["a.png", "ü/日本.png", 'q"\n.png']
    folder = store.folder / write_snapshot(store, unit_vectors(5, 16), skipped=names)
    rows = pq.read_table(folder / "skipped.parquet").to_pylist()
    assert [(row["key"], row["reason"]) for row in rows] == [(name, "empty") for name in names]


def test_a_list_of_skipped_files_that_cannot_be_written_says_why_and_can_be_closed_again(tmp_path: Path) -> None:
    skips = SkippedWriter(tmp_path / "skipped.parquet")
    skips.add(KnownSkip(SkippedPicture("a.png", Reason.EMPTY, "x" * 1_000), 0, "stamp"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            skips.close()
        skips.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Originals


def test_the_original_is_the_very_file(store: SnapshotStore) -> None:
    snapshot = opened(store, unit_vectors(2, 16), ids=["a", "b"], contents=[b"first", b"second"])
    images = snapshot.catalog.rows([0, 1])
    assert [snapshot.original(image, POLICY) for image in images] == [b"first", b"second"]


def ungiven(snapshot: Snapshot) -> Reason:
    """Have the first original refused with a sentence, and return the reason."""
    with pytest.raises(ImageError, match=r"^[A-Z].*\.$") as refused:
        snapshot.original(snapshot.catalog.rows([0])[0], POLICY)
    return refused.value.reason


@pytest.mark.parametrize("content", [b"First", b"first ", b"other file"])
def test_a_changed_original_is_refused(store: SnapshotStore, content: bytes) -> None:
    snapshot = opened(store, unit_vectors(1, 16), ids=["a"], contents=[b"first"])
    (store.folder.parent / "pictures" / "a.png").write_bytes(content)
    assert ungiven(snapshot) is Reason.CHANGED


def test_a_missing_original_is_refused(store: SnapshotStore) -> None:
    snapshot = opened(store, unit_vectors(1, 16), ids=["a"], contents=[b"first"])
    (store.folder.parent / "pictures" / "a.png").unlink()
    assert ungiven(snapshot) is Reason.UNREADABLE


def test_a_link_to_another_file_is_refused(store: SnapshotStore, tmp_path: Path) -> None:
    snapshot = opened(store, unit_vectors(1, 16), ids=["a"], contents=[b"first"])
    (tmp_path / "secret").write_bytes(b"secret")
    original = tmp_path / "pictures" / "a.png"
    original.unlink()
    original.symlink_to("../secret")
    assert ungiven(snapshot) in {Reason.OUTSIDE_SOURCE, Reason.CHANGED}


# Damage


def flip(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": flip,
    "truncated": lambda data: data[:-1],
    "emptied": lambda _: b"",
    "extended": lambda data: data + b"\0",
}


@pytest.fixture
def folder(store: SnapshotStore) -> Path:
    """Write a sound snapshot that is not current."""
    vectors = unit_vectors(40, 16)
    return store.folder / write_snapshot(store, vectors, skipped=["x.png"], factory="IVF4,Flat", publish=False)


def test_a_sound_snapshot_opens(folder: Path) -> None:
    assert len(Snapshot.open(folder)) == 40


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_corrupt_and_named(folder: Path, name: str, damage: str) -> None:
    replace(folder / name, DAMAGES[damage]((folder / name).read_bytes()))
    with pytest.raises(CorruptSnapshot, match=f"{name} has changed"):
        Snapshot.open(folder)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_is_corrupt(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CorruptSnapshot, match=r"missing or extra: |no readable manifest"):
        Snapshot.open(folder)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_folder_in_the_place_of_a_file_is_corrupt(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(CorruptSnapshot):
        Snapshot.open(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_link_to_nothing_in_the_place_of_a_file_is_corrupt(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("gone")
    with pytest.raises(CorruptSnapshot):
        Snapshot.open(folder)


@pytest.mark.parametrize("other", FILES[1:])
def test_swapped_files_are_corrupt(folder: Path, other: str) -> None:
    first, second = (folder / FILES[0]).read_bytes(), (folder / other).read_bytes()
    replace(folder / FILES[0], second)
    replace(folder / other, first)
    with pytest.raises(CorruptSnapshot, match="has changed"):
        Snapshot.open(folder)


@pytest.mark.parametrize("name", ["extra", ".hidden", "index.faiss.bak"])
def test_an_extra_file_is_corrupt_and_named(folder: Path, name: str) -> None:
    (folder / name).touch()
    with pytest.raises(CorruptSnapshot, match=f"missing or extra: {name}"):
        Snapshot.open(folder)


def test_a_folder_that_is_not_there_is_corrupt(tmp_path: Path) -> None:
    with pytest.raises(CorruptSnapshot, match="no readable manifest: No such file or directory"):
        Snapshot.open(tmp_path / "gone")


@pytest.mark.parametrize("name", ["embeddings.npy", "index.faiss"])
def test_a_file_of_another_snapshot_is_corrupt(store: SnapshotStore, folder: Path, name: str) -> None:
    other = store.folder / write_snapshot(store, unit_vectors(40, 16, seed=1), publish=False)
    replace(folder / name, (other / name).read_bytes())
    with pytest.raises(CorruptSnapshot, match=f"{name} has changed"):
        Snapshot.open(folder)


# Damage that the manifest agrees with


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest of a snapshot, as one who knows of its checksum does."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    del manifest[CHECKSUM]
    change(manifest)
    replace(folder / MANIFEST, json.dumps({**manifest, CHECKSUM: checksum(manifest)}).encode())


def forge(folder: Path, name: str, data: bytes) -> None:
    """Change a file of a snapshot, and the manifest with it."""
    replace(folder / name, data)
    facts = file_facts(folder / name).model_dump()
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: facts}))


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "count too small": lambda manifest: manifest.update(count=39),
    "count too large": lambda manifest: manifest.update(count=41),
    "count as text": lambda manifest: manifest.update(count="many"),
    "other dimension": lambda manifest: manifest["encoder"].update(dim=8),
    "newer format": lambda manifest: manifest.update(format=4),
    "unknown field": lambda manifest: manifest.update(extra=1),
    "unknown field deeper": lambda manifest: manifest["encoder"].update(extra=1),
    "unknown reason": lambda manifest: manifest.update(skipped={"mood": 1}),
    "no id": lambda manifest: manifest.pop("id"),
    "no encoder": lambda manifest: manifest.pop("encoder"),
    "no files": lambda manifest: manifest.update(files={}),
    "other hash": lambda manifest: manifest["files"]["index.faiss"].update(sha256="0" * 64),
    "other size": lambda manifest: manifest["files"]["index.faiss"].update(size=1),
    "file elsewhere": lambda manifest: manifest["files"].update({"../x": manifest["files"]["index.faiss"]}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_manifest_is_corrupt(folder: Path, edit: str) -> None:
    edit_manifest(folder, EDITS[edit])
    with pytest.raises(CorruptSnapshot):
        Snapshot.open(folder)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"not json"])
def test_a_manifest_that_is_no_manifest_is_corrupt(folder: Path, data: bytes) -> None:
    replace(folder / MANIFEST, data)
    with pytest.raises(CorruptSnapshot, match="is not a manifest of format 3"):
        Snapshot.open(folder)


@pytest.mark.parametrize("seal", [{}, {CHECKSUM: None}])
def test_a_manifest_without_a_checksum_is_refused_with_what_to_do(folder: Path, seal: dict[str, None]) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    del manifest[CHECKSUM]
    replace(folder / MANIFEST, json.dumps({**manifest, **seal}).encode())
    with pytest.raises(CorruptSnapshot, match=r"manifest\.json has no checksum.*build the snapshot again"):
        Snapshot.open(folder)


def test_the_manifest_of_another_snapshot_is_corrupt(store: SnapshotStore, folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(id="20200101T000000-000000"))
    with pytest.raises(CorruptSnapshot, match="holds the manifest of snapshot 20200101T000000-000000"):
        store.open(folder.name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_neither_folder_nor_manifest_have_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    edit_manifest(folder, lambda manifest: manifest["files"].pop(name))
    with pytest.raises(CorruptSnapshot):
        Snapshot.open(folder)


@pytest.mark.parametrize("name", ["embeddings.npy", "index.faiss", "catalog.sqlite", "text_map.npy"])
@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04", b"\x93NUMPY\x01\x00v\x00{"])
def test_garbage_with_a_manifest_to_match_is_corrupt(folder: Path, name: str, data: bytes) -> None:
    forge(folder, name, data)
    with pytest.raises(CorruptSnapshot):
        Snapshot.open(folder)


@pytest.mark.parametrize("name", ["embeddings.npy", "index.faiss", "catalog.sqlite"])
def test_a_file_of_a_smaller_snapshot_with_a_manifest_to_match_is_corrupt(
    store: SnapshotStore, folder: Path, name: str
) -> None:
    other = store.folder / write_snapshot(store, unit_vectors(39, 16), publish=False)
    forge(folder, name, (other / name).read_bytes())
    with pytest.raises(CorruptSnapshot, match="39"):
        Snapshot.open(folder)


@pytest.mark.parametrize("kind", ["<f8", ">f4", "<f2"])
def test_embeddings_of_another_type_are_corrupt(folder: Path, tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "other.npy", np.load(folder / "embeddings.npy").astype(kind))
    forge(folder, "embeddings.npy", (tmp_path / "other.npy").read_bytes())
    with pytest.raises(CorruptSnapshot, match="the embeddings are"):
        Snapshot.open(folder)


@pytest.mark.parametrize("text_map", [np.eye(15, dtype=np.float32), np.eye(16), np.float32(1)])
def test_a_text_map_of_another_shape_or_type_is_corrupt(
    folder: Path, tmp_path: Path, text_map: NDArray[np.float32]
) -> None:
    np.save(tmp_path / "other.npy", text_map)
    forge(folder, "text_map.npy", (tmp_path / "other.npy").read_bytes())
    with pytest.raises(CorruptSnapshot, match=r"the text map is .*, not \(16, 16\) of float32"):
        Snapshot.open(folder)


# Canaries


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_sound_index_finds_the_canaries(store: SnapshotStore, factory: str) -> None:
    opened(store, unit_vectors(300, 16), factory=factory, publish=False).check_canaries()


def test_one_picture_is_canary_enough(store: SnapshotStore) -> None:
    opened(store, unit_vectors(1, 16), publish=False).check_canaries()


def over_other_vectors(folder: Path, vectors: Embeddings, lists: int) -> None:
    """Put an index over other vectors into a snapshot: of `lists` clusters, learned from the snapshot's own."""
    index = faiss.index_factory(16, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(np.load(folder / "embeddings.npy"))
    index.add(vectors)
    forge(folder, "index.faiss", faiss.serialize_index(index).tobytes())


def test_an_index_over_rows_in_another_order_is_caught_by_the_canaries(store: SnapshotStore) -> None:
    folder = store.folder / write_snapshot(store, unit_vectors(300, 16), publish=False)
    over_other_vectors(folder, np.roll(unit_vectors(300, 16), 100, axis=0), lists=1)
    with pytest.raises(CorruptSnapshot, match="canaries were not found"):
        Snapshot.open(folder).check_canaries()


def test_an_index_that_finds_nothing_at_all_is_caught_by_the_canaries(store: SnapshotStore) -> None:
    vectors = unit_vectors(300, 16)
    folder = store.folder / write_snapshot(store, vectors, publish=False)
    over_other_vectors(folder, np.repeat(vectors[:1], 300, axis=0), lists=20)
    with pytest.raises(CorruptSnapshot, match="canaries were not found"):
        Snapshot.open(folder).check_canaries()
