"""The programs of the images, shut in as the images are, without a container engine.

In a mount namespace of their own everything is read-only but what is said to be writable; they have no capabilities,
can gain no privileges, and find no other program: no shell either.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.conftest import ADMIN_KEY, draw_collection
from tests.served import wait_for
from tests.trust.figures import noted

ROOT = Path(__file__).parent.parent
KEY = {"Authorization": f"Bearer {ADMIN_KEY}"}
QUERY = {"query": [{"text": "a red star"}], "limit": 5}
_TEMPORARY = "/mnt"
# Python writes where it is told what it found out.
_WITNESS = (
    "import os, sys, pathlib\n"
    "status = pathlib.Path('/proc/self/status').read_text()\n"
    "print([line.split()[1] for line in status.splitlines() if line.startswith(('CapEff', 'NoNewPrivs'))])\n"
    "for place in sys.argv[1:]:\n"
    "    try:\n"
    "        pathlib.Path(place, 'witness').write_text('x')\n"
    "        print('writable')\n"
    "    except OSError as error:\n"
    "        print(error.strerror)\n"
)


def shut_in(command: list[str], *writable: Path) -> list[str]:
    """Return a command line that runs a command with all but some folders, and a fresh temporary one, read-only."""
    mounts = [f"mount --bind {shlex.quote(str(each))} {shlex.quote(str(each))}" for each in writable]
    steps = [*mounts, "mount -o remount,bind,ro /", f"mount -t tmpfs tmpfs {_TEMPORARY}"]
    shut = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    variables = [f"TMPDIR={_TEMPORARY}", f"HOME={_TEMPORARY}", f"KINDRED_ADMIN_KEY={ADMIN_KEY}"]
    clean = ["env", "-i", "PATH=/nowhere", "PYTHONDONTWRITEBYTECODE=1", "OMP_NUM_THREADS=1", *variables]
    return ["unshare", "-Urm", "sh", "-ec", "\n".join([*steps, f"exec {shlex.join([*shut, *clean, *command])}"])]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw a collection, and make an empty folder for snapshots, where the kernel allows a namespace."""
    if any(shutil.which(program) is None for program in ("unshare", "setpriv")):
        pytest.skip("unshare and setpriv are not installed")
    tried = subprocess.run(shut_in([sys.executable, "-c", ""]), capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no namespaces here: {tried.stderr.strip()}")
    folder = tmp_path_factory.mktemp("shut-in")
    draw_collection(folder / "pictures")
    (folder / "snapshots").mkdir()
    snapshots = folder / "snapshots"
    command = [sys.executable, "-m", "indexer", "build", str(folder / "pictures"), "--labels=parent"]
    command += [f"--snapshots={snapshots}", "--model=demo"]
    built = subprocess.run(shut_in(command, snapshots), cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@contextmanager
def service(place: Path, *writable: Path) -> Iterator[httpx2.Client]:
    command = [sys.executable, "-m", "service", f"--snapshots={place / 'snapshots'}", "--port=0"]
    with (
        Path(place, "log").open("w") as log,
        subprocess.Popen(
            shut_in(command, *writable), cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            said = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            assert said is not None, Path(place, "log").read_text()
            with httpx2.Client(base_url=said[0], headers=KEY, timeout=60) as client:
                yield client
        finally:
            process.terminate()
            process.stdout.close()  # type: ignore[union-attr]
            process.wait(60)


def test_what_is_shut_in_has_no_privileges_and_writes_where_it_may_alone(place: Path) -> None:
    folder = place / "writable"
    folder.mkdir()
    places = [str(folder), _TEMPORARY, str(place), str(ROOT), "/etc"]
    command = shut_in([sys.executable, "-c", _WITNESS, *places], folder)
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told == ["['0000000000000000', '1']", "writable", "writable", *["Read-only file system"] * 3]
    assert not list(place.glob("witness"))
    figure = "no capabilities, no new privileges; of 5 places 2 writable, as said, and 3 read-only"
    noted(promise="R25", figure=figure)


def test_a_service_over_read_only_snapshots_answers_and_refuses_to_build(place: Path) -> None:
    with service(place) as client:
        found = client.post("/v1/search", json=QUERY)
        assert found.status_code == 200
        assert len(found.json()["results"]) == 5
        item = found.json()["results"][0]["id"]
        for path in (f"/v1/items/{item}/thumbnail", f"/v1/items/{item}/image", "/metrics", "/"):
            assert client.get(path).status_code == 200
        upload = client.post("/v1/search", files={"file": (place / "pictures" / "red" / "0.png").read_bytes()})
        assert upload.json()["results"][0]["path"].startswith("red/")
        snapshot = client.get("/v1/index").json()["snapshot"]
        for path in ("/admin/v1/reindex", f"/admin/v1/snapshots/{snapshot}/activate"):
            refused = client.post(path)
            assert (refused.status_code, refused.json()["code"]) == (409, "read_only"), refused.text
        assert client.post("/v1/search", json=QUERY).status_code == 200
    figure = "snapshots read-only, no shell, no capabilities: 7 requests answered, 2 that write refused with 409"
    noted(promise="R25", figure=figure)


def test_a_service_that_may_write_to_its_snapshots_alone_reindexes(place: Path) -> None:
    with service(place, place / "snapshots") as client:
        before = client.get("/v1/index").json()["snapshot"]
        job = client.post("/admin/v1/reindex")
        assert job.status_code == 202, job.text
        wait_for(lambda: client.get(job.headers["location"]).json()["state"] != "running", 120)
        assert client.get(job.headers["location"]).json()["state"] == "succeeded"
        wait_for(lambda: client.get("/v1/index").json()["snapshot"] != before)
    noted(promise="R25", figure="one writable folder: built and reindexed into it")
