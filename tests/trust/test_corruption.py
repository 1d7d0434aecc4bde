"""Damaged, forged and mismatched snapshots are refused, or answer exactly as before; the last good one serves on."""

import itertools
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from indexer.durable import write_whole
from indexer.encoder import Encoder
from indexer.errors import KindredError, SnapshotError
from indexer.recall import QueryKind
from indexer.snapshot import MANIFEST, Snapshot, file_facts
from indexer.store import SnapshotStore
from service.app import create_app
from service.settings import ServiceSettings
from tests.conftest import build_snapshot, draw_collection
from tests.served import serving, wait_for
from tests.snapshots import unit_vectors, write_snapshot
from tests.trust.figures import noted, sized
from tests.trust.mutations import MUTATIONS, copy, edit_manifest, forge, unseal

SEED = 6


@dataclass(frozen=True)
class Pair:
    """Two snapshots of as many pictures, of which the second is published, and what the first one answers."""

    first: Path
    second: Path
    pictures: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    draw_collection(folder / "pictures")
    draw_collection(folder / "others")
    for number, path in enumerate(sorted((folder / "others").glob("*/*.png"))):
        path.write_bytes((folder / "pictures" / path.parent.name / f"{7 - number % 8}.png").read_bytes())
    table = str(folder / "pictures" / "table.csv")
    first = build_snapshot(folder / "pictures", folder / "s", encoder, table, "HNSW8").manifest.id
    second = build_snapshot(folder / "others", folder / "s", encoder, "parent", "HNSW8").manifest.id
    return Pair(folder / "s" / first, folder / "s" / second, folder / "pictures")


def told(snapshot: Snapshot) -> Any:
    """Return what a snapshot answers, all of it that can be compared."""
    vectors = np.concatenate([np.array(snapshot.embeddings[:4]), unit_vectors(4, snapshot.manifest.encoder.dim)])
    hits = [
        snapshot.search(vectors, 10, kind, exact=exact)
        for kind, exact in itertools.product((QueryKind.TEXT, QueryKind.IMAGE), (False, True))
    ]
    images = snapshot.catalog.rows(range(len(snapshot)))
    text_map = None if snapshot.text_map is None else snapshot.text_map.tolist()
    return snapshot.manifest, hits, images, [snapshot.thumbnail(image) for image in images], text_map


def point_at(store: SnapshotStore, folder: Path, manifest: Path) -> None:
    """Make a snapshot current, with the hash of its manifest as it once was, and with no look at it."""
    write_whole(store.folder / "CURRENT", f"{folder.name} {file_facts(manifest).sha256}\n".encode())


def test_no_mutation_of_a_snapshot_crashes_hangs_or_changes_an_answer(pair: Pair, tmp_path: Path) -> None:
    rng, store, outcomes = random.Random(SEED), SnapshotStore(tmp_path / "s"), Counter[str]()
    right, cases = told(Snapshot.open(pair.first)), sized(500, 10_000, 10_000)
    wrong = []
    for number in range(cases):
        kind = list(MUTATIONS)[number % len(MUTATIONS)]
        folder = copy(pair.first, store.folder / pair.first.name)
        # Half of them are current, and known by the hash of their manifest; half are what one would go back to.
        point_at(store, folder if rng.random() < 0.5 else pair.second, pair.first / MANIFEST)
        names = MUTATIONS[kind](folder, pair.second, rng)
        try:
            snapshot = store.open(folder.name)
            snapshot.check_canaries()
        except SnapshotError as error:
            outcomes["refused"] += 1
            named = any(name in str(error) for name in names) or (MANIFEST in names and folder.name in str(error))
            wrong += [] if named else [f"{number}: {kind}, {names}: {error}"]
        else:
            outcomes["changed nothing"] += 1
            wrong += [] if told(snapshot) == right else [f"{number}: {kind}, {names}: another answer"]
        shutil.rmtree(store.folder)
    assert wrong == []
    assert outcomes["refused"] > cases * 0.85
    figure = f"{cases:,} mutations of {len(MUTATIONS)} kinds: {outcomes['refused']:,} refused by name, "
    noted(promise="R6", figure=figure + f"{outcomes['changed nothing']:,} changed nothing, 0 wrong answers", seed=SEED)


def test_every_kind_of_damage_leaves_the_last_good_snapshot_in_service(pair: Pair, tmp_path: Path) -> None:
    store, rng = SnapshotStore(tmp_path / "s"), random.Random(SEED)
    good = copy(pair.second, store.folder / pair.second.name)
    live = create_app(ServiceSettings(snapshots=store.folder)).state.live
    refused = 0
    for number, kind in enumerate(list(MUTATIONS) * sized(3, 10, 100)):
        store.publish(good.name)
        live.refresh()
        assert (live.searcher.snapshot.manifest.id, live.refused) == (good.name, None)
        serving = live.searcher
        bad = copy(pair.first, store.folder / pair.first.name)
        point_at(store, bad, bad / MANIFEST)
        names = MUTATIONS[kind](bad, pair.second, rng)
        live.refresh()
        if live.refused is None:
            assert told(live.searcher.snapshot) == told(Snapshot.open(pair.first)), (number, kind, names)
        else:
            assert live.searcher is serving
            assert any(name in live.refused for name in names) or MANIFEST in names, (number, kind, live.refused)
            refused += 1
        shutil.rmtree(bad)
    noted(promise="R6", figure=f"{refused} refused by a follower, the same searcher before and after", seed=SEED)


def test_a_running_service_is_ready_and_answers_while_damaged_snapshots_are_published(
    pair: Pair, tmp_path: Path
) -> None:
    store, rng = SnapshotStore(tmp_path / "s"), random.Random(SEED)
    good = copy(pair.second, store.folder / pair.second.name)
    store.publish(good.name)
    with serving(store.folder) as service, httpx2.Client(base_url=service.address, timeout=30) as client:

        def refused() -> bool:
            return client.get("/v1/index").json()["refused"] is not None

        kinds = ("a bit is flipped", "a file is missing", "a file is a link", "a file is a pipe or a folder")
        for kind in kinds:
            bad = copy(pair.first, store.folder / pair.first.name)
            names = MUTATIONS[kind](bad, pair.second, rng)
            point_at(store, bad, pair.first / MANIFEST)
            wait_for(refused, 20)
            assert client.get("/readyz").status_code == 200
            answer = client.post("/v1/search", json={"query": "a red picture"}).json()
            assert (answer["index"]["snapshot"], len(answer["results"]) > 0) == (good.name, True), names
            store.publish(good.name)
            wait_for(lambda: not refused(), 20)
            shutil.rmtree(bad)
    noted(promise="R6", figure=f"{len(kinds)} damaged snapshots offered to a process: ready, and the last good one")


# What does not belong together. A forger here may write every file of the folder of snapshots but `CURRENT`.


MISMATCHES: dict[str, Callable[[Path, Path], Any]] = {
    "a catalogue of equal length": lambda a, b: shutil.copy(b / "catalog.sqlite", a / "catalog.sqlite"),
    "the same, its hash in the manifest": lambda a, b: forge(a, "catalog.sqlite", b, sealed=False),
    "a manifest without its checksum": lambda a, _: unseal(a),
    "another dimension, sealed": lambda a, _: edit_manifest(a, lambda m: m["encoder"].update(dim=8), sealed=True),
    "another count, sealed": lambda a, _: edit_manifest(a, lambda m: m.update(count=23), sealed=True),
    "a format of the future, sealed": lambda a, _: edit_manifest(a, lambda m: m.update(format=4), sealed=True),
    "another image half, sealed": lambda a, _: edit_manifest(
        a, lambda m: m["encoder"].update(image="f" * 64), sealed=True
    ),
    "the id of another, sealed": lambda a, b: edit_manifest(a, lambda m: m.update(id=b.name), sealed=True),
    "an index of another kind": lambda a, _: edit_manifest(a, lambda m: m.update(factory="PQ8"), sealed=False),
}


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_what_does_not_belong_to_a_snapshot_cannot_be_activated(pair: Pair, tmp_path: Path, mismatch: str) -> None:
    store = SnapshotStore(tmp_path / "s")
    good = copy(pair.second, store.folder / pair.second.name)
    store.publish(good.name)
    bad = store.folder / pair.first.name
    shutil.copytree(pair.first, bad)
    for path in bad.iterdir():
        path.chmod(0o644)
    MISMATCHES[mismatch](bad, pair.second)
    live = create_app(ServiceSettings(snapshots=store.folder)).state.live
    live.refresh()
    serving = live.searcher
    with pytest.raises(KindredError):
        live.activate(bad.name)
    assert (live.searcher is serving, store.published()) == (True, good.name)
    noted(promise="R7", figure=f"{mismatch}: refused")


@pytest.mark.parametrize("name", ["index.faiss", "embeddings.npy"])
def test_vectors_of_others_are_refused_though_every_hash_agrees(tmp_path: Path, name: str) -> None:
    store = SnapshotStore(tmp_path / "s")
    first, second = (write_snapshot(store, unit_vectors(2_000, 16, seed=seed)) for seed in (1, 2))
    forge(store.folder / first, name, store.folder / second, sealed=True)
    with pytest.raises(SnapshotError, match="canaries were not found"):
        store.publish(first)
    assert store.published() == second
    noted(promise="R7", figure=f"{name} of equal shape, every hash made to agree: refused")


def test_a_catalogue_forged_with_every_hash_is_refused_where_it_is_current_and_only_there(
    pair: Pair, tmp_path: Path
) -> None:
    store = SnapshotStore(tmp_path / "s")
    bad = copy(pair.first, store.folder / pair.first.name)
    point_at(store, bad, pair.first / MANIFEST)
    forge(bad, "catalog.sqlite", pair.second, sealed=True)
    with pytest.raises(SnapshotError, match=r"manifest\.json is not the manifest that was published"):
        store.open(bad.name)
    # Nothing signs a snapshot: who may write all of its files may make another one.
    good = copy(pair.second, store.folder / pair.second.name)
    store.publish(good.name)
    store.open(bad.name).check_canaries()
    figure = "a forger of every hash: refused where CURRENT names the snapshot, not seen where it does not"
    noted(promise="R7", figure=figure)
