"""Snapshots swapped in and out under load, a service killed in a swap, and what a service keeps of all that."""

import random
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx2

from indexer.encoder import Encoder
from indexer.store import SnapshotStore
from tests import swaps
from tests.conftest import ADMIN_KEY, build_snapshot
from tests.served import resident, serving, wait_for
from tests.trust.figures import LONG, noted, sized

pytestmark = LONG

SEED = 15
_MIB = 2**20


def opened(pid: int, folder: Path) -> Counter[str]:
    """Count what a process has open, and has mapped, below a folder, by snapshot; `all` is every descriptor."""
    links = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(each.readlink()))
    maps = [line.split(maxsplit=5)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    inside = [Path(path).parent.name for path in links + maps if path.startswith(f"{folder}/")]
    return Counter(inside) + Counter(all=len(links))


def built(source: Path, snapshots: Path, encoder: Encoder, count: int) -> list[str]:
    """Build snapshots whose captions tell them apart, the first with `generation 0`; return their ids."""
    ids = []
    for generation in range(count):
        swaps.write_table(source, snapshots.parent / "table.csv", generation)
        ids.append(build_snapshot(source, snapshots, encoder, str(snapshots.parent / "table.csv")).manifest.id)
    return ids


def swapped(address: str, store: SnapshotStore, ids: list[str], count: int) -> swaps.Tally:
    """Publish one after another, round and round, while clients search, each once it is served."""
    tally, stop = swaps.Tally(), threading.Event()
    answered: list[tuple[str, set[str]]] = []
    clients = [threading.Thread(target=swaps._query, args=(address, tally, answered, stop)) for _ in range(2)]
    with httpx2.Client(base_url=address, timeout=30) as watcher:
        for client in clients:
            client.start()
        try:
            for number in range(1, count + 1):
                wanted = ids[number % len(ids)]
                store.publish(wanted)
                wait_for(lambda wanted=wanted: watcher.get("/v1/index").json()["snapshot"] == wanted, 30)  # type: ignore[misc]
        finally:
            stop.set()
            for client in clients:
                client.join()
    captions = {snapshot: {f"generation {number}"} for number, snapshot in enumerate(ids)}
    tally.failures += [f"{snapshot}: {found}" for snapshot, found in answered if found != captions[snapshot]]
    return tally


def test_swaps_under_load_mix_nothing_and_leave_no_file_open(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    store, count = SnapshotStore(tmp_path / "s"), sized(50, 200, 1_000)
    ids = built(source, store.folder, encoder, 5)
    store.publish(ids[0])
    asked = {"query": "a red star", "limit": 5}
    with serving(store.folder, KINDRED_REFRESH_SECONDS="0.05") as service:
        pid = service.process.pid
        with httpx2.Client(base_url=service.address, timeout=30) as client:
            cursor = client.post("/v1/search", json=asked).json()["next_cursor"]
            tally = swapped(service.address, store, ids, 11)
            assert client.post("/v1/search", json={**asked, "cursor": cursor}).status_code == 410
        before, files = resident(pid), opened(pid, store.folder)
        more = swapped(service.address, store, ids, count - 11)
        wait_for(lambda: len(opened(pid, store.folder)) == 2 and opened(pid, store.folder)["all"] <= files["all"], 20)
        after = resident(pid)
    assert tally.failures + more.failures == []
    assert after < before + 64 * _MIB
    answers = tally.answers.total() + more.answers.total()
    figure = f"{count} swaps, {answers:,} answers, 0 failed or mixed, one snapshot open in the end, "
    noted(promise="R15", figure=figure + f"resident memory {before // _MIB} MiB, then {after // _MIB} MiB")


def test_a_service_killed_in_a_swap_starts_again_on_the_old_or_the_new_snapshot(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    # Activating, publishing and rolling back are one replaced file, and a start is a look at it; the calls of the
    # system that this takes fail one by one in the crash programme. Here whole processes die.
    store, rng, served = SnapshotStore(tmp_path / "s"), random.Random(SEED), Counter[str]()
    ids = built(source, store.folder, encoder, 2)
    kills = sized(3, 10, 1_000)
    for _ in range(kills):
        with serving(store.folder, KINDRED_ADMIN_KEY=ADMIN_KEY, KINDRED_REFRESH_SECONDS="0.01") as service:
            started = httpx2.get(f"{service.address}/v1/index", timeout=30).json()["snapshot"]
            assert started in ids
            swapping = threading.Thread(target=_swap_until_gone, args=(service.address, store, ids))
            swapping.start()
            time.sleep(rng.uniform(0, 0.3))
            service.process.kill()
            service.process.wait()
            swapping.join()
        served[started] += 1
        store.open(store.published()).check_canaries()
        assert {path.name for path in store.folder.iterdir() if not path.name.startswith(".")} == {*ids, "CURRENT"}
    figure = f"{kills} kills while snapshots were activated, published and rolled back: each start served one of them"
    noted(promise="R4", figure=figure, seed=SEED)


def _swap_until_gone(address: str, store: SnapshotStore, ids: list[str]) -> None:
    """Activate through the service, and publish beside it, until it answers no more."""
    number = 0
    with httpx2.Client(base_url=address, timeout=30, headers={"Authorization": f"Bearer {ADMIN_KEY}"}) as client:
        while True:
            try:
                client.post(f"/admin/v1/snapshots/{ids[number % 2]}/activate").raise_for_status()
                store.publish(ids[(number := number + 1) % 2])
            except httpx2.TransportError:
                return


def test_a_mixed_load_with_swaps_leaves_the_memory_of_a_service_as_it_was(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    store, rounds = SnapshotStore(tmp_path / "s"), sized(3, 10, 1_000)
    ids = built(source, store.folder, encoder, 2)
    picture, sizes = (source / "red" / "0.png").read_bytes(), []
    with (
        serving(store.folder, KINDRED_REFRESH_SECONDS="0.05") as service,
        httpx2.Client(base_url=service.address, timeout=30) as client,
    ):
        for number in range(2 + rounds):
            wanted = ids[number % 2]
            store.publish(wanted)
            wait_for(lambda wanted=wanted: client.get("/v1/index").json()["snapshot"] == wanted, 30)  # type: ignore[misc]
            for request in range(50):
                text = client.post("/v1/search", json={"query": f"a star {number} {request}"})
                good = client.post("/v1/search", files={"file": picture})
                bad = client.post("/v1/search", files={"file": picture[: 40 + request]})
                gone = client.get(f"/v1/items/{request:016x}")
                assert (text.status_code, good.status_code, gone.status_code) == (200, 200, 404)
                assert 400 <= bad.status_code < 500
            sizes.append(resident(service.process.pid) / _MIB)
    settled = sizes[1:]  # the first round warms up
    growth = (settled[-1] - settled[0]) / (len(settled) - 1)
    assert settled[-1] - settled[0] < 48 + 2 * rounds, sizes
    figure = f"{200 * rounds:,} requests and {rounds} swaps after two rounds: "
    noted(promise="R22", figure=figure + f"{settled[0]:.0f} to {settled[-1]:.0f} MiB, {growth:+.2f} MiB a round of 200")
