"""`kindred doctor`: what it finds in order, and what it finds out."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from indexer.index import faiss_build
from indexer.store import SnapshotStore
from service.doctor import Finding, State, examine
from service.keys import Scope, create


def found(snapshots: Path, environment: dict[str, str] | None = None) -> dict[str, Finding]:
    """Return the worst finding of each check."""
    order = list(State)
    findings = sorted(examine(environment or {}, snapshots), key=lambda each: order.index(each.state))
    return {finding.check: finding for finding in findings}


def test_a_deployment_in_order_is_found_so(snapshots: Path) -> None:
    findings = found(snapshots)
    assert {each.state for each in findings.values()} == {State.OK}
    assert "24 pictures" in findings["snapshot"].found
    assert SnapshotStore(snapshots).published() in findings["snapshot"].found
    assert findings["faiss"].found == faiss_build()
    assert "cpu" in findings["torch"].found or "cuda" in findings["torch"].found


def test_a_changed_file_of_the_snapshot_is_a_failure(snapshots: Path) -> None:
    thumbnails = snapshots / SnapshotStore(snapshots).published() / "thumbnails.bin"
    thumbnails.chmod(0o644)
    thumbnails.write_bytes(thumbnails.read_bytes() + b"x")
    finding = found(snapshots)["snapshot"]
    assert finding.state is State.FAIL
    assert "thumbnails.bin" in finding.found
    assert "rollback" in finding.remedy


def test_an_empty_folder_is_a_failure(tmp_path: Path) -> None:
    assert found(tmp_path)["snapshot"].state is State.FAIL


def test_a_model_that_has_gone_is_a_failure(source: Path, tmp_path: Path) -> None:
    from indexer.encoder import EncoderName, load_encoder  # noqa: PLC0415
    from tests.conftest import build_snapshot  # noqa: PLC0415
    from tests.models import new_model, save_model  # noqa: PLC0415

    name = EncoderName(model=save_model(tmp_path / "model", new_model(0)))
    build_snapshot(source, tmp_path / "snapshots", load_encoder(name, device="cpu", threads=1))
    assert found(tmp_path / "snapshots")["encoder"].state is State.OK
    shutil.rmtree(tmp_path / "model")
    assert found(tmp_path / "snapshots")["encoder"].state is State.FAIL
    save_model(tmp_path / "model", new_model(5))
    assert "image half" in found(tmp_path / "snapshots")["encoder"].found


def test_leftovers_are_named_unless_a_build_is_running(snapshots: Path) -> None:
    (snapshots / ".building-x").mkdir()
    assert ".building-x" in found(snapshots)["folder"].found
    assert found(snapshots)["folder"].state is State.WARN
    with SnapshotStore(snapshots).lock():
        assert found(snapshots)["folder"].found == "a build is running"


def test_a_misspelt_setting_is_told_with_the_likely_one(tmp_path: Path) -> None:
    findings = found(tmp_path, {"KINDRED_DEADLINE_SECOND": "5", "KINDRED_PORT": "80", "KINDRED_KEY": "x", "PATH": ""})
    assert findings["settings"] == Finding(
        "settings",
        State.WARN,
        "KINDRED_DEADLINE_SECOND is no setting, and nothing heeds it.",
        "Did you mean KINDRED_DEADLINE_SECONDS?",
    )
    assert found(tmp_path, {"KINDRED_PORT": "80"})["settings"].state is State.OK


def test_a_setting_that_is_not_valid_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINDRED_PORT", "70000")
    finding = found(tmp_path)["settings"]
    assert finding.state is State.FAIL
    assert finding.found.startswith("KINDRED_PORT: ")


@pytest.mark.parametrize(
    ("key", "state"), [("a" * 40, State.WARN), ("password12345678", State.WARN), ("q7Jx0PzL2mVf9RkT4sWb8NcY", State.OK)]
)
def test_the_strength_of_the_admin_key_is_judged_and_the_key_not_told(
    key: str, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINDRED_ADMIN_KEY", key)
    findings = found(tmp_path)
    assert findings["admin key"].state is state
    assert key not in str(findings)


def test_a_file_of_keys_is_read_and_others_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys.json"
    monkeypatch.setenv("KINDRED_KEYS", str(keys))
    assert found(tmp_path)["keys"].state is State.FAIL
    create(keys, "page", (Scope.SEARCH,), None)
    assert found(tmp_path)["keys"].state is State.OK
    keys.chmod(0o644)
    assert found(tmp_path)["keys"].remedy == f"chmod 600 {keys}"


def test_who_may_reach_an_open_service_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(tmp_path)["address"].state is State.OK
    monkeypatch.setenv("KINDRED_HOST", "0.0.0.0")  # noqa: S104
    assert found(tmp_path)["address"].state is State.WARN
    create(tmp_path / "keys.json", "page", (Scope.SEARCH,), None)
    monkeypatch.setenv("KINDRED_KEYS", str(tmp_path / "keys.json"))
    assert found(tmp_path)["address"].state is State.OK


def test_a_root_that_is_not_there_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINDRED_ROOTS", json.dumps([str(tmp_path), "s3://bucket"]))
    assert found(tmp_path)["roots"].state is State.OK
    monkeypatch.setenv("KINDRED_ROOTS", json.dumps([str(tmp_path / "gone")]))
    assert found(tmp_path)["roots"].state is State.FAIL


def test_the_command_prints_a_table_or_json_and_fails_where_something_must_be_mended(
    snapshots: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "service.cli", "doctor", "--snapshots"]
    well = subprocess.run([*command, str(snapshots)], capture_output=True, text=True, check=False)
    assert (well.returncode, well.stderr) == (0, "")
    assert [line.split()[0] for line in well.stdout.splitlines()][:3] == ["check", "python", "packages"]
    ill = subprocess.run([*command, str(tmp_path / "none"), "--json"], capture_output=True, text=True, check=False)
    assert ill.returncode == 1
    (failure,) = (row for row in json.loads(ill.stdout) if row["state"] == "fail")
    assert failure["check"] == "snapshot"
