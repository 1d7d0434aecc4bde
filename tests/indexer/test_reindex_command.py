"""`reindex`: another index over the same pictures; and what `info` says of it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from indexer.__main__ import app
from indexer.encoder import Encoder, EncoderName, load_encoder
from indexer.errors import BuildError, BuildRunning, EncoderMismatch
from indexer.recall import QueryKind
from indexer.reindex import reindex
from indexer.relevance import Relevance
from indexer.relevance_learning import Lessons
from indexer.snapshot import Manifest, Snapshot
from indexer.store import SnapshotStore
from tests.conftest import build_snapshot
from tests.models import new_model, save_model
from tests.snapshots import unit_vectors, write_snapshot


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def opened(snapshots: Path) -> Snapshot:
    store = SnapshotStore(snapshots)
    return store.open(store.published())


def files(snapshots: Path, snapshot_id: str) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in (snapshots / snapshot_id).iterdir()}


def leftovers(snapshots: Path) -> list[Path]:
    return list(snapshots.glob(".building-*"))


def loading(name: EncoderName) -> Callable[[Manifest], Encoder]:
    return lambda _: load_encoder(name, device="cpu", threads=1)


def test_a_reindex_has_the_same_pictures_in_another_index(snapshots: Path) -> None:
    before = opened(snapshots)
    result = run("reindex", "--snapshots", snapshots, "--index", "IVF4,Flat", "--target-recall", 0.9)
    assert result.exit_code == 0, result.output
    after = opened(snapshots)
    assert f"Snapshot {after.manifest.id} is current: 24 pictures, index IVF4,Flat, in" in result.stdout
    assert "by text   nprobe" in result.stdout
    assert after.manifest.id > before.manifest.id
    assert (after.manifest.factory, after.manifest.options.target_recall) == ("IVF4,Flat", 0.9)
    for name in ("sources", "labels", "near_duplicates"):
        assert getattr(after.manifest.options, name) == getattr(before.manifest.options, name)
    np.testing.assert_array_equal(after.embeddings, before.embeddings)
    assert after.catalog.rows(range(24)) == before.catalog.rows(range(24))
    assert after.manifest.tuning is not None
    assert after.manifest.relevance == before.manifest.relevance is not None
    vector = before.embeddings[3]
    one, other = (each.search(vector[None, :], 3, QueryKind.IMAGE)[0] for each in (before, after))
    assert [hit.image.id for hit in one] == [hit.image.id for hit in other]


def test_what_is_not_said_stays_as_it_was(snapshots: Path) -> None:
    assert run("reindex", "--snapshots", snapshots, "--index", "HNSW8", "--target-recall", 0.9).exit_code == 0
    assert run("reindex", "--snapshots", snapshots).exit_code == 0
    manifest = opened(snapshots).manifest
    assert (manifest.factory, manifest.options.index, manifest.options.target_recall) == ("HNSW8", "HNSW8", 0.9)
    assert run("reindex", "--snapshots", snapshots, "--index", "auto").exit_code == 0
    assert opened(snapshots).manifest.factory == "Flat"


def test_no_source_is_read_and_no_file_but_the_index_takes_room_again(snapshots: Path, source: Path) -> None:
    shutil.rmtree(source)
    old = SnapshotStore(snapshots).published()
    assert run("reindex", "--snapshots", snapshots, "--index", "SQ8").exit_code == 0
    before, after = files(snapshots, old), files(snapshots, SnapshotStore(snapshots).published())
    shared = {name for name in before if before[name] == after[name]}
    assert shared == {"embeddings.npy", "catalog.sqlite", "thumbnails.bin", "skipped.parquet", "text_map.npy"}


def test_files_are_copied_where_the_disk_refuses_links(snapshots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    old = SnapshotStore(snapshots).published()
    monkeypatch.setattr(os, "link", refuse)
    assert run("reindex", "--snapshots", snapshots, "--index", "SQ8").exit_code == 0
    assert not {*files(snapshots, old).values()} & {*files(snapshots, opened(snapshots).manifest.id).values()}


def test_the_snapshot_it_came_from_may_be_pruned(snapshots: Path) -> None:
    assert run("reindex", "--snapshots", snapshots, "--index", "SQ8").exit_code == 0
    assert run("prune", "--snapshots", snapshots, "--keep", 1).exit_code == 0
    assert len(SnapshotStore(snapshots).ids()) == 1
    assert run("verify", "--snapshots", snapshots).stdout.endswith(": sound\n")
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in opened(snapshots).folder.iterdir())


def test_one_may_roll_back_from_it(snapshots: Path) -> None:
    old = SnapshotStore(snapshots).published()
    assert run("reindex", "--snapshots", snapshots, "--index", "SQ8").exit_code == 0
    assert run("rollback", "--snapshots", snapshots).stdout == f"Snapshot {old} is current.\n"


def test_a_later_build_goes_on_from_it(snapshots: Path, source: Path, encoder: Encoder) -> None:
    assert run("reindex", "--snapshots", snapshots, "--index", "SQ8").exit_code == 0
    report = build_snapshot(source, snapshots, encoder, labels=str(source / "table.csv"))
    assert (report.encoded, report.reused) == (0, 24)


def test_an_exact_index_needs_no_encoder(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "s")
    write_snapshot(store, unit_vectors(50, 16), factory="HNSW8")  # of a model that is nowhere
    assert run("reindex", "--snapshots", store.folder, "--index", "Flat").exit_code == 0
    assert opened(store.folder).manifest.factory == "Flat"
    result = run("reindex", "--snapshots", store.folder, "--index", "HNSW8")
    assert result.exit_code == 1
    assert "nowhere" in str(result.exception)


def test_another_model_under_the_same_name_is_refused(snapshots: Path, tmp_path: Path) -> None:
    other = EncoderName(model=save_model(tmp_path / "other", new_model(5)))
    with pytest.raises(EncoderMismatch, match="no longer the model that made the embeddings"):
        reindex(SnapshotStore(snapshots), lambda options: options.model_copy(update={"index": "HNSW8"}), loading(other))
    assert leftovers(snapshots) == []


def test_an_index_that_finds_too_little_is_refused_and_leaves_nothing(snapshots: Path) -> None:
    store = SnapshotStore(snapshots)
    before = (store.ids(), store.published())
    result = run("reindex", "--snapshots", snapshots, "--index", "PQ1x4fs")
    assert result.exit_code == 1
    assert isinstance(result.exception, BuildError)
    assert "By text, the index PQ1x4fs finds" in str(result.exception)
    assert ((store.ids(), store.published()), leftovers(snapshots)) == (before, [])
    assert run("reindex", "--snapshots", snapshots, "--index", "PQ1x4fs", "--accept-low-recall").exit_code == 0
    assert "BELOW the target of 0.98" in run("info", "--snapshots", snapshots).stdout


def test_an_index_that_faiss_does_not_know_is_refused(snapshots: Path) -> None:
    result = run("reindex", "--snapshots", snapshots, "--index", "NoSuch")
    assert "FAISS knows no index 'NoSuch' of 16 dimensions" in str(result.exception)
    assert leftovers(snapshots) == []


def test_it_waits_for_no_build(snapshots: Path, model: EncoderName) -> None:
    store = SnapshotStore(snapshots)
    with store.lock(), pytest.raises(BuildRunning):
        reindex(SnapshotStore(snapshots), lambda options: options, loading(model))


def test_one_that_is_killed_leaves_the_current_snapshot_and_the_next_one_clears_up(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "s")
    before = write_snapshot(store, unit_vectors(20_000, 128))
    command = [sys.executable, "-m", "indexer", "reindex", "--snapshots", str(store.folder), "--index", "HNSW64"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
        while not leftovers(store.folder):
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert (store.ids(), store.published(), len(leftovers(store.folder))) == ([before], before, 1)
    store.open(before).check_canaries()
    assert run("reindex", "--snapshots", store.folder, "--index", "Flat").exit_code == 0
    assert leftovers(store.folder) == []
    store.open(before).check_canaries()


# What is told


def test_info_says_how_each_kind_is_searched(snapshots: Path) -> None:
    assert run("reindex", "--snapshots", snapshots, "--index", "IVF4,Flat").exit_code == 0
    lines = run("info", "--snapshots", snapshots).stdout.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("* ")
    tuning = opened(snapshots).manifest.tuning
    assert tuning is not None
    for line, kind, found in ((lines[1], "text ", tuning.text), (lines[2], "image", tuning.image)):
        assert f"by {kind}  nprobe {found.chosen.parameters.nprobe}: recall {found.chosen.recall:.3f} in " in line
        assert line.endswith(f"measured with {found.queries} {found.origin}")


def test_info_says_what_was_learnt(snapshots: Path) -> None:
    relevance = opened(snapshots).manifest.relevance
    assert relevance is not None
    text, image, votes = relevance.text, relevance.image, relevance.votes
    assert text is not None
    assert image is not None
    assert votes is not None
    lines = run("info", "--snapshots", snapshots).stdout.splitlines()
    assert lines[1].strip() == (
        f"relevance: text (labels, 36 queries): calibration error {text.expected_calibration_error:.3f}; "
        f"image (labels, 24 queries): calibration error {image.expected_calibration_error:.3f}"
    )
    assert lines[2].strip() == (
        f"classification: accuracy {votes.accuracy:.3f}; at 90 % coverage {votes.coverage[2].accuracy:.3f} "
        f"(24 pictures); calibration error {votes.expected_calibration_error:.3f}"
    )


def test_info_says_where_nothing_could_be_learnt(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "s")
    nothing = Lessons(Relevance(text=None, image=None, votes=None), unit_vectors(16, 16)[:0])
    write_snapshot(store, unit_vectors(5, 16), lessons=nothing)
    lines = run("info", "--snapshots", store.folder).stdout.splitlines()
    assert [line.strip() for line in lines[1:]] == ["relevance: nothing to learn from"]


@pytest.mark.parametrize(("ending", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG\r\n\x1a\n")])
def test_info_draws_recall_against_time(snapshots: Path, tmp_path: Path, ending: str, start: bytes) -> None:
    assert run("reindex", "--snapshots", snapshots, "--index", "IVF4,Flat").exit_code == 0
    file = tmp_path / f"curves.{ending}"
    assert run("info", "--snapshots", snapshots, "--plot", file).exit_code == 0
    data = file.read_bytes()
    assert data.startswith(start)
    if ending == "svg":
        for words in ("by text", "by picture", "target 0.98", "recall@10", "IVF4,Flat, 24 pictures"):
            assert words in data.decode()


def test_info_draws_what_was_learnt_over_an_exact_index_too(snapshots: Path, tmp_path: Path) -> None:
    file = tmp_path / "curves.svg"
    assert run("info", "--snapshots", snapshots, "--plot", file).exit_code == 0
    for words in ("relevance of a hit", "by text, error", "by picture, error", "part of pictures that get a label"):
        assert words in file.read_text()
    assert "recall@10" not in file.read_text()


def test_info_says_why_it_cannot_draw(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "s")
    write_snapshot(store, unit_vectors(5, 16))
    result = run("info", "--snapshots", store.folder, "--plot", tmp_path / "a.svg")
    assert result.exit_code == 2
    assert "Flat, has not been tuned" in result.output
    assert not (tmp_path / "a.svg").exists()
    assert run("info", "--snapshots", store.folder, "--plot", tmp_path / "a.txt").exit_code == 2
