"""`kindred keys`: what is printed once, what is kept, and how long a key is good."""

import gc
import hashlib
import json
import random
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from service import cli, keys
from service.app import create_app
from service.auth import Gate
from service.keys import BadKeyFile, KeyFile, KeyNotFound, Scope
from service.settings import ServiceSettings
from tests.conftest import ADMIN_KEY
from tests.trust.figures import LONG, noted, sized

DAY = timedelta(days=1)
SEED = 19
# From here on Reparaz, Balasch and Verbauwhede call a difference of times certain.
CERTAIN = 4.5


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


def welch(compare: Callable[[str], object], right: str, first: int) -> float:
    """Return Welch's t of the times for keys that are wrong in their first secret letter and in their last one.

    As in "Dude, is my code constant time?" (Reparaz, Balasch and Verbauwhede, 2017): both kinds in a random order, and
    the longest tenth of all times, in which others had the processor, left out.

    Args:
        compare: what is measured.
        right: the right key.
        first: where its secret begins.
    """
    from scipy.stats import ttest_ind  # noqa: PLC0415 - takes a second to import

    rng, count = random.Random(SEED), sized(20_000, 100_000, 1_000_000)
    near = np.array([rng.random() < 0.5 for _ in range(count)])
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    places = (first if each else len(right) - 1 for each in near)
    wrong = [f"{right[:at]}{rng.choice(letters.replace(right[at], ''))}{right[at + 1 :]}" for at in places]
    times = np.empty(count)
    gc.disable()
    try:
        for number, given in enumerate(wrong):
            start = time.perf_counter_ns()
            compare(given)
            times[number] = time.perf_counter_ns() - start
    finally:
        gc.enable()
    kept = times <= np.percentile(times, 90)
    return abs(float(ttest_ind(times[kept & near], times[kept & ~near], equal_var=False).statistic))


@LONG
def test_the_time_of_an_answer_does_not_tell_how_much_of_a_key_was_right(file: Path, tmp_path: Path) -> None:
    key, settings = keys.create(file, "x", (Scope.SEARCH,), None), {"snapshots": tmp_path, "admin_key": ADMIN_KEY}
    gate = Gate(create_app(ServiceSettings.model_validate(settings)), ServiceSettings.model_validate(settings))
    kept = KeyFile.read(file)
    found = welch(kept.find, key, len(key) - 43)
    admin = welch(gate._holder, ADMIN_KEY, 0)
    # The same measurement tells a comparison that stops at the first letter that differs.
    leaky = welch(lambda given: all(one == other for one, other in zip(given, ADMIN_KEY, strict=True)), ADMIN_KEY, 0)
    assert found < CERTAIN
    assert admin < CERTAIN
    assert leaky > 10 * CERTAIN
    samples = sized(20_000, 100_000, 1_000_000)
    figure = f"{samples:,} samples of each: |t| is {found:.1f} for keys of a file, {admin:.1f} for the admin key, "
    figure += f"{leaky:.0f} for a comparison that stops early; {CERTAIN} would be certain"
    noted(promise="R19", figure=figure, seed=SEED)
