"""A build, from a folder of pictures to a published snapshot."""

import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from indexer.build import build, forecast
from indexer.encoder import Encoder, EncoderName, load_encoder
from indexer.errors import BuildError, Reason
from indexer.plan import image_id
from indexer.progress import ProgressStyle, reporter
from indexer.recall import QueryKind
from indexer.snapshot import BuildOptions, Snapshot
from indexer.store import SnapshotStore
from tests.conftest import POLICY, build_snapshot, local_run
from tests.models import new_model, save_model
from tests.snapshots import search


def opened(snapshots: Path) -> Snapshot:
    store = SnapshotStore(snapshots)
    return store.open(store.published())


def test_row_i_of_everything_is_picture_i(snapshots: Path, source: Path, encoder: Encoder) -> None:
    snapshot = opened(snapshots)
    images = snapshot.catalog.rows(range(24))
    assert [image.path for image in images] == sorted(str(path.relative_to(source)) for path in source.glob("*/*.png"))
    for image in images:
        with Image.open(source / image.path) as picture:
            expected = encoder.encode_images([encoder.preprocess(picture.convert("RGB"))])[0]
            assert (image.width, image.height) == picture.size == (56, 40)
        np.testing.assert_allclose(snapshot.embeddings[image.row], expected, atol=1e-6)
        assert search(snapshot, expected, 1)[0].image.path == image.path


def test_the_catalogue_holds_what_the_table_says(snapshots: Path) -> None:
    query = "SELECT id, label, caption, metadata, media_type FROM images WHERE path = 'green/3.png'"
    with sqlite3.connect(opened(snapshots).folder / "catalog.sqlite") as catalog:
        assert catalog.execute(query).fetchall() == [
            (image_id("green/3.png"), "green", "a green picture", '{"size": "3"}', "image/png")
        ]


def test_an_id_is_the_start_of_the_hash_of_the_path() -> None:
    assert image_id("green/3.png") == "0275c66a682cfa78"


def test_labels_may_be_the_names_of_the_folders(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    build_snapshot(source, tmp_path / "s", encoder, labels="parent")
    assert opened(tmp_path / "s").catalog.label_counts() == {"blue": 8, "green": 8, "red": 8}


def test_a_second_build_encodes_only_what_is_new(snapshots: Path, source: Path, encoder: Encoder) -> None:
    Image.new("RGB", (30, 30), "white").save(source / "red" / "white.png")
    (source / "blue" / "0.png").unlink()
    (source / "green" / "1.png").rename(source / "red" / "moved.png")
    report = build_snapshot(source, snapshots, encoder)
    assert (report.encoded, report.reused) == (1, 23)
    images = {image.path: image for image in opened(snapshots).catalog.rows(range(24))}
    assert "blue/0.png" not in images
    assert images["red/moved.png"].label == "red"


def test_reused_embeddings_are_the_same_bits(snapshots: Path, source: Path, encoder: Encoder) -> None:
    before = np.array(opened(snapshots).embeddings)
    build_snapshot(source, snapshots, encoder)
    np.testing.assert_array_equal(opened(snapshots).embeddings, before)


def test_another_image_tower_encodes_everything_again(snapshots: Path, source: Path, tmp_path: Path) -> None:
    other = load_encoder(EncoderName(model=save_model(tmp_path / "other", new_model(9))), device="cpu", threads=1)
    assert build_snapshot(source, snapshots, other).encoded == 24


def test_exact_duplicates_share_one_embedding(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    for number in range(70):
        shutil.copy(source / "red" / "0.png", source / "blue" / f"copy{number}.png")
    report = build_snapshot(source, tmp_path / "s", encoder)
    assert report.encoded == 24
    snapshot = opened(tmp_path / "s")
    image = snapshot.catalog.get(image_id("red/0.png"))
    assert image is not None
    hits = search(snapshot, snapshot.vector(image), 71)
    assert {hit.score for hit in hits} == {1.0}
    assert [hit.image.id for hit in hits] == sorted(hit.image.id for hit in hits)


def test_a_bad_picture_costs_itself_and_is_listed_with_its_reason(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    (source / "red" / "empty.jpg").touch()
    (source / "red" / "page.jpg").write_text("<html></html>")
    whole = (source / "red" / "0.png").read_bytes()
    (source / "red" / "half.png").write_bytes(whole[: len(whole) // 2])
    report = build_snapshot(source, tmp_path / "s", encoder)
    # The table of captions is no picture either: it was not named as the table this time.
    assert report.skipped == Counter({Reason.NOT_AN_IMAGE: 2, Reason.EMPTY: 1, Reason.UNREADABLE: 1})
    assert report.manifest.count == 24
    rows = pq.read_table(opened(tmp_path / "s").folder / "skipped.parquet").to_pylist()
    assert {(each["key"], each["reason"]) for each in rows} == {
        ("red/empty.jpg", "empty"),
        ("red/page.jpg", "not_an_image"),
        ("red/half.png", "unreadable"),
        ("table.csv", "not_an_image"),
    }


def test_a_batch_of_only_bad_pictures_does_not_stop_the_build(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    (source / "bad").mkdir()
    for number in range(200):
        (source / "bad" / f"{number:03}.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    report = build_snapshot(source, tmp_path / "s", encoder)
    assert (report.manifest.count, report.skipped[Reason.NOT_AN_IMAGE] + report.skipped[Reason.UNREADABLE]) == (24, 201)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.rmdir(), "does not exist"),
        (lambda _: None, "No picture in .* can be used \\(no files\\)"),
        (lambda folder: (folder / "a.jpg").touch(), "No picture in .* can be used \\(1 empty\\)"),
    ],
)
def test_a_source_without_pictures_publishes_nothing(
    make: Callable[[Path], object], message: str, tmp_path: Path, encoder: Encoder
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    make(folder)
    with pytest.raises(BuildError, match=message):
        build_snapshot(folder, tmp_path / "s", encoder)
    assert SnapshotStore(tmp_path / "s").current() is None


def test_an_index_that_faiss_does_not_know_is_refused_before_a_picture_is_read(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    with pytest.raises(BuildError, match="FAISS knows no index 'NoSuch,Index' of 16 dimensions"):
        build_snapshot(source, tmp_path / "s", encoder, index="NoSuch,Index")
    assert not (tmp_path / "s").exists()


def test_a_failed_build_leaves_the_published_snapshot_alone(snapshots: Path, source: Path, encoder: Encoder) -> None:
    before = SnapshotStore(snapshots).published()
    with pytest.raises(BuildError, match="FAISS cannot build IVF4096,Flat over 24 vectors"):
        build_snapshot(source, snapshots, encoder, index="IVF4096,Flat")
    assert SnapshotStore(snapshots).published() == before
    assert SnapshotStore(snapshots).ids() == [before]


def test_a_small_collection_is_searched_exactly_with_nothing_to_tune(snapshots: Path) -> None:
    manifest = opened(snapshots).manifest
    assert (manifest.options.index, manifest.factory, manifest.tuning) == ("auto", "Flat", None)


def test_an_approximate_index_is_tuned_for_texts_and_for_pictures(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    manifest = build_snapshot(source, tmp_path / "s", encoder, index="IVF4,Flat").manifest
    tuning = opened(tmp_path / "s").manifest.tuning
    assert tuning is not None
    assert tuning == manifest.tuning
    assert (tuning.target_recall, tuning.text.origin, tuning.image.origin) == (0.98, "labels", "crops of pictures")
    assert min(tuning.text.chosen.recall, tuning.image.chosen.recall) >= 0.98
    assert tuning.parameters(QueryKind.TEXT).nprobe in range(1, 5)


@pytest.mark.parametrize("index", ["PQ1x4fs", "IVF4,PQ1x4fs"])
def test_an_index_that_finds_too_little_is_refused_and_the_next_one_encodes_nothing_again(
    index: str, source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    with pytest.raises(BuildError) as raised:
        build_snapshot(source, tmp_path / "s", encoder, index=index)
    assert re.fullmatch(
        rf"By text, the index {index} finds 0\.\d{{3}} of the nearest ten at best \(.*\), and the target recall is "
        r"0\.98\. What is encoded is kept: run again with another --index, such as "
        rf"{re.escape(index)},Refine\(SQfp16\), with a lower --target-recall, or with --accept-low-recall to publish "
        r"it as it is\.",
        str(raised.value),
    )
    assert SnapshotStore(tmp_path / "s").ids() == []
    report = build_snapshot(source, tmp_path / "s", encoder, index=f"{index},Refine(SQfp16)")
    assert (report.resumed, report.encoded, report.manifest.count) == (25, 24, 24)
    assert not list((tmp_path / "s").glob(".building-*"))


def test_an_index_that_finds_too_little_is_published_where_that_is_accepted(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    options = BuildOptions(sources=(str(source),), labels="parent", index="PQ1x4fs", accept_low_recall=True)
    store = SnapshotStore(tmp_path / "s")
    build(options, store, encoder, POLICY, local_run(encoder), reporter(ProgressStyle.PLAIN))
    tuning = opened(tmp_path / "s").manifest.tuning
    assert tuning is not None
    assert tuning.text.chosen.recall < tuning.target_recall == 0.98


def test_a_forecast_counts_the_bytes_of_the_index_asked_for(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    facts = (SnapshotStore(tmp_path / "s"), encoder, POLICY, local_run(encoder), reporter(ProgressStyle.PLAIN))
    flat, bytes_ = (
        forecast(BuildOptions(sources=(str(source),), index=index), *facts).disk for index in ("auto", "SQ8")
    )
    # 4 bytes or 1 for each of 16 numbers, of 25 files.
    assert flat - bytes_ == 25 * 48


def test_a_damaged_snapshot_costs_its_embeddings_not_the_build(snapshots: Path, source: Path, encoder: Encoder) -> None:
    file = opened(snapshots).folder / "embeddings.npy"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert build_snapshot(source, snapshots, encoder).encoded == 24


def test_every_file_of_the_bad_corpus_is_indexed_or_refused_with_a_reason(
    real_data: Path, tmp_path: Path, encoder: Encoder
) -> None:
    report = build_snapshot(real_data / "bad", tmp_path / "s", encoder)
    files = {str(path.relative_to(real_data / "bad")) for path in (real_data / "bad").rglob("*") if path.is_file()}
    snapshot = opened(tmp_path / "s")
    indexed = {image.path for image in snapshot.catalog.rows(range(len(snapshot)))}
    refused = {each["key"]: each for each in pq.read_table(snapshot.folder / "skipped.parquet").to_pylist()}
    assert indexed | refused.keys() == files
    assert not indexed & refused.keys()
    assert all(each["reason"] in set(Reason) and each["detail"] for each in refused.values())
    assert report.skipped.total() == len(refused)
    assert len(indexed) > 200
