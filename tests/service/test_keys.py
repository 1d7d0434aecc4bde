"""`kindred keys`: what is printed once, what is kept, and how long a key is good."""

import hashlib
import json
import re
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service import cli, keys
from service.keys import BadKeyFile, KeyFile, KeyNotFound, Scope

DAY = timedelta(days=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name a file of keys, which is not there yet."""
    return tmp_path / "keys.json"


def run(file: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["keys", *words], env={"KINDRED_KEYS": str(file)})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output.strip()


def change(file: Path, **changes: Any) -> None:
    """Change the first key of a file by hand."""
    content = json.loads(file.read_text())
    content["keys"][0].update(changes)
    file.write_text(json.dumps(content))


def is_good(file: Path, key: str) -> bool:
    return KeyFile.read(file).find(key) is not None


def test_a_key_is_printed_once_and_only_its_digest_is_kept(file: Path) -> None:
    code, key = run(file, "create", "--name", "shop", "--scope", "search", "--scope", "metrics", "--expires", "90d")
    assert code == 0
    _, key_id, secret = key.split("_", 2)
    assert re.fullmatch("[0-9a-f]{12}", key_id)
    assert re.fullmatch("[A-Za-z0-9_-]{43}", secret)  # 256 bits, six to a letter
    assert secret not in file.read_text()
    (kept,) = json.loads(file.read_text())["keys"]
    assert [each["sha256"] for each in kept["secrets"]] == [hashlib.sha256(secret.encode()).hexdigest()]
    assert (kept["id"], kept["name"], kept["scopes"]) == (key_id, "shop", ["search", "metrics"])
    life = datetime.fromisoformat(kept["expires"]) - datetime.fromisoformat(kept["created"])
    assert life == timedelta(days=90)
    listed = run(file, "list")[1]
    assert key_id in listed
    assert "shop" in listed
    assert secret not in listed


def test_only_its_owner_may_read_the_file(file: Path) -> None:
    for name in ("one", "two"):
        run(file, "create", "--name", name, "--scope", "search")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_key_opens_and_what_is_nearly_it_does_not(file: Path) -> None:
    key = keys.create(file, "x", (Scope.SEARCH,), None)
    other = keys.create(file, "y", (Scope.ADMIN,), DAY)
    found = KeyFile.read(file).find(key)
    assert found is not None
    assert found.scopes == (Scope.SEARCH,)
    head, key_id, secret = key.split("_", 2)
    last = "A" if secret[-1] != "A" else "B"
    wrong = ["", "kindred__", key_id, secret, key[:-1], key[:-1] + last, key + "A", key.upper(), f" {key}", f"{key}\n"]
    for near in (*wrong, f"{head}_{'0' * 12}_{secret}", f"{head}_{other.split('_')[1]}_{secret}"):
        assert not is_good(file, near), near


def test_a_key_that_expired_is_no_good(file: Path) -> None:
    key = keys.create(file, "x", (Scope.SEARCH,), DAY)
    assert is_good(file, key)
    change(file, expires=(datetime.now(UTC) - timedelta(seconds=1)).isoformat())
    assert not is_good(file, key)
    assert "(expired)" in run(file, "list")[1]


def test_a_revoked_key_is_no_good_and_others_stay_so(file: Path) -> None:
    first, second = (keys.create(file, name, (Scope.SEARCH,), None) for name in "xy")
    assert run(file, "revoke", first.split("_")[1])[0] == 0
    assert (is_good(file, first), is_good(file, second)) == (False, True)


def test_a_rotated_key_has_two_secrets_until_the_grace_is_over(file: Path) -> None:
    old = keys.create(file, "x", (Scope.SEARCH,), None)
    key_id = old.split("_")[1]
    new = run(file, "rotate", key_id, "--grace", "7d")[1]
    assert new.split("_")[1] == key_id
    assert new != old
    assert (is_good(file, old), is_good(file, new)) == (True, True)
    secrets = json.loads(file.read_text())["keys"][0]["secrets"]
    left = datetime.fromisoformat(secrets[0]["until"]) - datetime.now(UTC)
    assert timedelta(days=6, hours=23) < left <= timedelta(days=7)
    assert secrets[1]["until"] is None
    secrets[0]["until"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    change(file, secrets=secrets)
    assert (is_good(file, old), is_good(file, new)) == (False, True)


def test_a_second_rotation_does_not_lengthen_the_first_ones_grace(file: Path) -> None:
    first = keys.create(file, "x", (Scope.SEARCH,), None)
    key_id = first.split("_")[1]
    keys.rotate(file, key_id, timedelta(hours=1))
    before = json.loads(file.read_text())["keys"][0]["secrets"][0]
    keys.rotate(file, key_id, timedelta(days=30))
    secrets = json.loads(file.read_text())["keys"][0]["secrets"]
    assert len(secrets) == 3
    assert secrets[0] == before
    last = keys.rotate(file, key_id, timedelta(0))
    assert is_good(file, last)
    assert not is_good(file, first)


def test_keys_made_at_the_same_time_are_all_kept(file: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "service.cli",
        "keys",
        "create",
        "--file",
        str(file),
        "--scope",
        "search",
        "--name",
    ]
    running = [subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, text=True) for number in range(4)]
    made = {process.communicate(timeout=60)[0].strip() for process in running}
    assert len(made) == 4
    assert all(is_good(file, key) for key in made)


def test_an_unknown_id_is_named(file: Path) -> None:
    keys.create(file, "x", (Scope.SEARCH,), None)
    with pytest.raises(KeyNotFound, match="no key 0123"):
        keys.revoke(file, "0123")
    with pytest.raises(KeyNotFound, match="no key 0123"):
        keys.rotate(file, "0123", DAY)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"keys": [{}]}', b'{"other": []}', b"\xff\xfe"])
def test_a_broken_file_is_refused_and_left_alone(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    for act in (lambda: KeyFile.read(file), lambda: keys.create(file, "x", (Scope.SEARCH,), None)):
        with pytest.raises(BadKeyFile, match=re.escape(str(file))):
            act()
    assert file.read_bytes() == content


def test_a_missing_file_is_refused_with_the_way_to_make_one(file: Path) -> None:
    with pytest.raises(BadKeyFile, match="`kindred keys create` makes one"):
        KeyFile.read(file)


@pytest.mark.parametrize("words", [["--expires", "90"], ["--expires", "1y"], ["--scope", "all"]])
def test_wrong_usage_is_refused(file: Path, words: list[str]) -> None:
    assert run(file, "create", "--name", "x", "--scope", "search", *words)[0] == 2
    assert not file.exists()
