"""What a build learns of the demo collection, measured by the generator's own truth."""

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer import demo
from indexer.encoder import DEMO, Embeddings, Encoder, EncoderName, load_encoder
from indexer.snapshot import Snapshot
from indexer.store import SnapshotStore
from indexer.text_map import text_directions
from tests.conftest import build_snapshot
from tests.snapshots import unit


@pytest.fixture(scope="module")
def demo_encoder() -> Encoder:
    return load_encoder(EncoderName(model=DEMO), device="cpu", threads=1)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory, demo_encoder: Encoder) -> Snapshot:
    folder = tmp_path_factory.mktemp("demo")
    demo.write_collection(folder / "pictures")
    labels = str(folder / "pictures" / "metadata.jsonl")
    build_snapshot(folder / "pictures", folder / "s", demo_encoder, labels=labels)
    store = SnapshotStore(folder / "s")
    return store.open(store.published())


def facts(snapshot: Snapshot, name: str) -> NDArray[np.str_]:
    return np.array([record.metadata[name] for record in snapshot.catalog.rows(range(len(snapshot)))])


def precision(snapshot: Snapshot, queries: Embeddings, kinds: NDArray[np.str_], colours: NDArray[np.str_]) -> float:
    """Return the part of a query's kind among the ten nearest pictures that are not of its kind and colour at once."""
    kind, colour = facts(snapshot, "kind"), facts(snapshot, "colour")
    scores = queries @ snapshot.embeddings.T
    scores[(kinds[:, None] == kind) & (colours[:, None] == colour)] = -2
    nearest = np.argsort(-scores, axis=1)[:, :10]
    return float((kind[nearest] == kinds[:, None]).mean())


def test_relevance_and_confidence_are_calibrated(snapshot: Snapshot) -> None:
    learnt = snapshot.manifest.relevance
    assert learnt is not None
    for found in (learnt.text, learnt.image, learnt.votes):
        assert found is not None
        assert found.expected_calibration_error < 0.05


def test_giving_no_label_to_one_picture_in_ten_saves_a_third_of_the_errors(snapshot: Snapshot) -> None:
    learnt = snapshot.manifest.relevance
    assert learnt is not None
    assert learnt.votes is not None
    assert 1 - learnt.votes.accuracy_at(0.9) < 2 / 3 * (1 - learnt.votes.accuracy)


def test_without_colours_pictures_and_texts_find_more_of_their_kind_in_other_colours(
    snapshot: Snapshot, demo_encoder: Encoder
) -> None:
    words = demo_encoder.encode_texts([f"a {colour} thing" for colour in demo.COLOURS])
    directions = {"map": text_directions(words, snapshot.text_map), "bare": text_directions(words, None)}
    kinds, colours = facts(snapshot, "kind")[::5], facts(snapshot, "colour")[::5]
    pairs = [(kind, colour) for kind in demo.KINDS for colour in demo.COLOURS]
    texts = demo_encoder.encode_texts([f"a {colour} {kind}" for kind, colour in pairs])
    for queries, own in ((snapshot.embeddings[::5], (kinds, colours)), (texts, tuple(np.array(pairs).T))):
        found = {
            name: precision(snapshot, unit(queries - queries @ some @ some.T), *own)
            for name, some in directions.items()
        }
        before = precision(snapshot, queries, *own)
        assert found["map"] > found["bare"] > before + 0.2
