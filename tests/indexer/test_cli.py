"""The command line: what it prints, and its exit codes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from indexer.__main__ import app
from indexer.encoder import EncoderName
from indexer.store import SnapshotStore


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def built(source: Path, tmp_path: Path, model: EncoderName) -> Path:
    for _ in range(2):
        result = run("build", source, "--snapshots", tmp_path / "s", "--model", model.model, "--labels", "parent")
        assert result.exit_code == 0, result.output
    return tmp_path / "s"


def test_a_build_ends_with_a_summary_of_what_was_done_and_skipped(
    source: Path, tmp_path: Path, model: EncoderName
) -> None:
    (source / "red" / "empty.png").touch()
    result = run("build", source, "--snapshots", tmp_path / "s", "--model", model.model)
    assert result.exit_code == 0
    assert "24 pictures (24 encoded, 0 reused)" in result.stdout
    assert "Skipped 2 files: 1 empty, 1 not_an_image." in result.stdout or "1 not_an_image, 1 empty" in result.stdout
    assert "26 new, 0 changed, 0 moved, 0 unchanged, 0 deleted, 0 known to be of no use." in result.stdout
    assert "encode: 26 of 26" in result.stderr


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(source: Path, tmp_path: Path, model: EncoderName) -> None:
    arguments = ("build", source, "--snapshots", tmp_path / "s", "--model", model.model)
    said = run(*arguments, "--dry-run").stdout
    assert "25 new, 0 changed, 0 moved, 0 unchanged, 0 deleted" in said
    assert "To be encoded: 25 pictures in 1 shards." in said
    assert re.search(r"About 0:00:\d\d and [\d.]+ MiB of disk; [\d,.]+ GiB are free", said)
    assert SnapshotStore(tmp_path / "s").ids() == []


def test_pictures_that_could_not_be_used_are_tried_again_when_asked(
    source: Path, tmp_path: Path, model: EncoderName
) -> None:
    (source / "red" / "empty.png").touch()
    for path in source.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    assert run("build", source, "--snapshots", tmp_path / "s", "--model", model.model).exit_code == 0
    again = run("retry", "--snapshots", tmp_path / "s", "--reason", "empty")
    assert "1 new, 0 changed, 0 moved, 24 unchanged, 0 deleted, 1 known to be of no use." in again.stdout
    assert "2 new" in run("retry", "--snapshots", tmp_path / "s").stdout
    assert run("retry", "--snapshots", tmp_path / "s", "--reason", "ugly").exit_code == 2


def test_ctrl_c_finishes_the_shards_in_hand_and_the_next_build_goes_on(
    source: Path, tmp_path: Path, model: EncoderName
) -> None:
    for number in range(300):
        shutil.copy(source / "red" / "0.png", source / "red" / f"copy{number}.png")
    command = [sys.executable, "-m", "indexer", "build", str(source), "--model", model.model]
    command += ["--snapshots", str(tmp_path / "s"), "--shard-size", "4"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        while not list((tmp_path / "s").glob(".work/shards/*.parquet")):
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Finishing the shards in hand; once more stops at once." in said
    stopped = re.search(r"Stopped: (\d+) of 325 pictures are encoded and kept", said)
    assert stopped
    again = run(*command[3:])
    assert f"Resumed: {stopped[1]} pictures had been finished before an interruption." in again.stdout


def test_more_skips_than_allowed_end_with_3_after_publishing(source: Path, tmp_path: Path, model: EncoderName) -> None:
    arguments = ("build", source, "--snapshots", tmp_path / "s", "--model", model.model, "--max-skip")
    assert run(*arguments, 0).exit_code == 3  # table.csv is no picture
    assert SnapshotStore(tmp_path / "s").current() is not None
    assert run(*arguments, 1).exit_code == 0


def test_wrong_usage_ends_with_2(source: Path) -> None:
    assert run("build").exit_code == 2
    assert run("build", "/no/such/folder").exit_code == 2
    assert run("build", source, "--no-such-flag").exit_code == 2
    assert run("prune", "--keep", 0).exit_code == 2


def test_a_model_is_never_overwritten(tmp_path: Path) -> None:
    result = run("pretrain", "--out", tmp_path)
    assert result.exit_code == 2
    assert "exists already" in result.output


def test_the_demo_collection_has_other_things_to_train_on(tmp_path: Path) -> None:
    assert run("demo", tmp_path / "test", "--count", 20).exit_code == 0
    assert run("demo", tmp_path / "train", "--count", 20, "--fold", "train").exit_code == 0
    ours, theirs = ({path.read_bytes() for path in (tmp_path / fold).rglob("*.*g")} for fold in ("test", "train"))
    assert len(ours) >= 15
    assert ours.isdisjoint(theirs)


def test_a_failure_is_one_line_and_ends_with_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "indexer", "rollback", "--snapshots", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: Nothing has been published in {tmp_path} yet; run `python -m indexer build` first.\n"
    )


def test_what_the_disk_refuses_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "indexer", "rollback", "--snapshots", str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: [Errno 20] Not a directory: '{tmp_path}/file/CURRENT'\n")


def test_json_progress_ends_with_the_new_snapshot(source: Path, tmp_path: Path, model: EncoderName) -> None:
    result = run("build", source, "--snapshots", tmp_path / "s", "--model", model.model, "--progress", "json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line.get("stage") for line in lines[:-1]] == ["encode", "index", "learn", "publish"]
    current = SnapshotStore(tmp_path / "s").published()
    changes = {"new": 25, "changed": 0, "moved": 0, "unchanged": 0, "deleted": 0}
    counts = {"encoded": 24, "reused": 0, "resumed": 0, "skipped": {"not_an_image": 1}}
    assert lines[-1] == {"snapshot": current, **changes, **counts}


def test_info_lists_snapshots_and_marks_the_current_one(built: Path) -> None:
    newest, oldest = SnapshotStore(built).ids()
    lines = run("info", "--snapshots", built).stdout.splitlines()
    assert [line[:24] for line in lines if not line.startswith("    ")] == [f"* {newest}", f"  {oldest}"]
    assert "24 pictures  Flat" in lines[0]


def test_rollback_and_prune(built: Path) -> None:
    newest, oldest = SnapshotStore(built).ids()
    assert run("rollback", "--snapshots", built).stdout == f"Snapshot {oldest} is current.\n"
    assert run("rollback", "--snapshots", built, "--to", newest).exit_code == 0
    assert SnapshotStore(built).published() == newest
    assert run("prune", "--snapshots", built, "--keep", 1).stdout == f"Deleted {oldest}.\n"
    assert SnapshotStore(built).ids() == [newest]


def test_verify_names_the_damaged_file(built: Path) -> None:
    assert run("verify", "--snapshots", built, "--all").stdout.count(": sound") == 2
    index = built / SnapshotStore(built).published() / "index.faiss"
    index.chmod(0o644)
    index.write_bytes(index.read_bytes()[:-1] + b"?")
    result = run("verify", "--snapshots", built)
    assert result.exit_code == 1
    assert "index.faiss has changed" in result.stdout
