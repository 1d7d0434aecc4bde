"""What a build learns: from labels, captions and near-duplicates, and never from what it cannot know."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL.Image import Image
from sklearn.isotonic import IsotonicRegression

from indexer.build import build
from indexer.catalog import Catalog, CatalogWriter, ImageRecord
from indexer.encoder import Embeddings, Encoder, EncoderSpec, Pixels
from indexer.held_out import SourcedQueries, captions
from indexer.images import RGB
from indexer.progress import ProgressStyle, reporter
from indexer.relevance import Relevance
from indexer.relevance_learning import Lessons, _Known, _label, _Learner
from indexer.snapshot import BuildOptions, Manifest, Snapshot
from indexer.store import SnapshotStore
from tests.conftest import POLICY, build_snapshot, local_run
from tests.snapshots import unit, unit_vectors, write_snapshot


def opened(snapshots: Path) -> Snapshot:
    store = SnapshotStore(snapshots)
    return store.open(store.published())


def relevance(snapshots: Path) -> Relevance:
    found = opened(snapshots).manifest.relevance
    assert found is not None
    return found


class Counting:
    """An encoder that counts the texts it is given."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.texts = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.encoder, name)

    @property
    def spec(self) -> EncoderSpec:
        return self.encoder.spec

    @property
    def preprocess(self) -> Callable[[Image | RGB], Pixels]:
        return self.encoder.preprocess

    def encode_images(self, pixels: Sequence[Pixels]) -> Embeddings:
        return self.encoder.encode_images(pixels)

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        self.texts += len(texts)
        return self.encoder.encode_texts(texts)


def catalogue(
    path: Path, labels: Sequence[str | None], contents: Sequence[int] | None = None, firsts: Sequence[int] = ()
) -> Catalog:
    """Write a catalogue of pictures with labels, and open it.

    Args:
        path: of its file.
        labels: of the pictures.
        contents: pictures with the same number have the same content; each its own where left out.
        firsts: row of the first picture of each one's group of near-duplicates, -1 for none.
    """
    writer = CatalogWriter(path)
    numbers = contents or range(len(labels))
    writer.add(
        ImageRecord(row, f"id{row:04}", f"{row}.png", f"{number:064x}", "image/png", 8, 8, (0, 1), label=label)
        for row, (label, number) in enumerate(zip(labels, numbers, strict=True))
    )
    writer.group(np.array(firsts, np.int64))
    writer.finish()
    return Catalog.open(path)


def learner(catalog: Catalog, embeddings: Embeddings, encoder: Encoder) -> _Learner:
    return _Learner(catalog, embeddings, np.empty(0, np.uint8), encoder)


def clusters(count: int, labels: int, spread: float, seed: int = 0) -> tuple[Embeddings, list[str]]:
    """Draw pictures around the centres of so many labels."""
    random = np.random.default_rng(seed)
    own = random.integers(labels, size=count)
    vectors = random.normal(size=(labels, 16))[own] + spread * random.normal(size=(count, 16))
    return unit(vectors), [f"label {number}" for number in own]


# Votes


def voted(vectors: Embeddings, labels: Sequence[str], own: int, left_out: set[int]) -> tuple[float, bool]:
    """Return the share of the label that wins the vote on a picture, and whether it is right."""
    others = [row for row in range(len(vectors)) if row != own and row not in left_out]
    cosines = {row: float(vectors[row].astype(np.float64) @ vectors[own].astype(np.float64)) for row in others}
    totals: defaultdict[str, float] = defaultdict(float)
    for row in sorted(others, key=lambda row: -cosines[row])[:21]:
        totals[labels[row]] += math.exp(cosines[row] / 0.1)
    winner = max(totals, key=lambda label: totals[label])
    return totals[winner] / sum(totals.values()), winner == labels[own]


def test_votes_are_those_of_a_loop_that_leaves_each_picture_out(tmp_path: Path, encoder: Encoder) -> None:
    vectors, labels = clusters(100, labels=5, spread=1.4)
    found = learner(catalogue(tmp_path / "c", labels), vectors, encoder).votes()
    assert found is not None
    outcomes = sorted((voted(vectors, labels, row, set()) for row in range(100)), key=lambda one: (-one[0], one[1]))
    right = [outcome[1] for outcome in outcomes]
    assert 0.2 < np.mean(right) < 0.95
    assert found.pictures == 100
    assert found.accuracy == pytest.approx(np.mean(right), abs=1e-4)
    assert [point.coverage for point in found.coverage] == pytest.approx(np.arange(1, 0.09, -0.05).tolist())
    for point in found.coverage:
        count = round(point.coverage * 100)
        assert point.accuracy == pytest.approx(np.mean(right[:count]), abs=1e-4)
        assert point.confidence == pytest.approx(found.confidence(outcomes[count - 1][0]), abs=1e-4)
    shares = np.round([outcome[0] for outcome in outcomes], 6)
    steps = IsotonicRegression(y_min=0, y_max=1).fit_transform(shares, right)
    for level in np.unique(steps):
        assert found.confidence(shares[steps == level].mean()) == pytest.approx(level, abs=0.01)


@pytest.mark.parametrize("same", ["content", "group"])
def test_pictures_that_show_the_same_do_not_vote_on_each_other(tmp_path: Path, encoder: Encoder, same: str) -> None:
    vectors, random = unit_vectors(100, 16), np.random.default_rng(0)
    own = [f"label {number}" for number in random.integers(4, size=100)]
    facts = {"contents": [*range(100), *range(100)]} if same == "content" else {"firsts": [*range(100), *range(100)]}
    catalog = catalogue(tmp_path / "c", own + own, **facts)
    pairs = np.concatenate([vectors, vectors])
    found = learner(catalog, pairs, encoder).votes()
    assert found is not None
    expected = [voted(pairs, own + own, row, {row % 100, row % 100 + 100})[1] for row in range(200)]
    assert found.accuracy == pytest.approx(np.mean(expected), abs=0.011)  # both of a pair are as near: either may be in
    assert found.accuracy < 0.5
    alone = learner(catalogue(tmp_path / "d", own + own), pairs, encoder).votes()
    assert alone is not None
    assert alone.accuracy > 0.9


def test_others_vote_where_a_whole_neighbourhood_shows_the_same(tmp_path: Path, encoder: Encoder) -> None:
    vectors, labels = clusters(120, labels=3, spread=1.0)
    vectors[:60] = vectors[0]
    catalog = catalogue(tmp_path / "c", labels, firsts=[0] * 60 + [-1] * 60)
    records = catalog.rows(range(120))
    for own, voters in learner(catalog, vectors, encoder)._voters(records):
        assert len(voters) == 21
        assert own.row >= 60 or min(voter.row for voter in voters) >= 60


@pytest.mark.parametrize(
    "labels", [["a"] * 40, [None] * 40, ["a", "b"] * 7 + [None] * 26], ids=["one label", "none", "few pictures"]
)
def test_of_votes_nothing_is_learnt_from_too_little(tmp_path: Path, encoder: Encoder, labels: list[str | None]) -> None:
    assert learner(catalogue(tmp_path / "c", labels), unit_vectors(40, 16), encoder).votes() is None


# Scores


def test_relevance_is_how_often_pairs_of_such_a_score_are_of_one_label(tmp_path: Path, encoder: Encoder) -> None:
    # Of 50 pictures all are near, so that all pairs are learnt from.
    vectors, labels = clusters(50, labels=4, spread=0.8)
    queries, asked = clusters(30, labels=4, spread=0.8, seed=0)
    known = _Known("labels", SourcedQueries("texts", queries, tuple(asked)), asked, _label)
    found = learner(catalogue(tmp_path / "c", labels), vectors, encoder)._calibration(known)
    assert found is not None
    assert (found.origin, found.queries, found.pairs) == ("labels", 30, 1_500)
    scores = np.round(queries.astype(np.float64) @ vectors.T.astype(np.float64), 6).ravel()
    right = (np.array(asked)[:, None] == np.array(labels)).ravel()
    steps = IsotonicRegression(y_min=0, y_max=1).fit_transform(scores, right)
    levels = np.unique(steps)
    means = [scores[steps == level].mean() for level in levels]
    np.testing.assert_allclose(found.relevance(means), levels, atol=0.01)
    assert sum(bin_.count for bin_ in found.reliability) == 15 * 50


def test_pictures_of_which_nothing_is_known_are_left_out(tmp_path: Path, encoder: Encoder) -> None:
    vectors, labels = clusters(50, labels=4, spread=0.8)
    some = [label if row % 2 else None for row, label in enumerate(labels)]
    asked: list[str | None] = [*labels[:20], None, None]
    known = _Known("labels", SourcedQueries("crops", vectors[:22], ("",) * 22), asked, _label)
    found = learner(catalogue(tmp_path / "c", some), vectors, encoder)._calibration(known)
    assert found is not None
    assert (found.queries, found.pairs) == (20, 20 * 25)


@pytest.mark.parametrize(
    ("asked", "labels"),
    [(["a"] * 7, ["a", "b"] * 25), (["c"] * 8, ["a", "b"] * 25), (["a"] * 8, ["a"] * 50), (["a"] * 8, [None] * 50)],
    ids=["few queries", "no right pair", "no wrong pair", "nothing known"],
)
def test_of_scores_nothing_is_learnt_from_too_little(
    tmp_path: Path, encoder: Encoder, asked: list[str], labels: list[str | None]
) -> None:
    queries = SourcedQueries("texts", unit_vectors(len(asked), 16), tuple(asked))
    catalog = catalogue(tmp_path / "c", labels)
    known = _Known("labels", queries, asked, _label)
    assert learner(catalog, unit_vectors(50, 16, seed=1), encoder)._calibration(known) is None


# Builds


def table(source: Path, describe: Callable[[int], str], columns: str) -> str:
    """Write a table that describes each picture of a folder by its number, and return its path."""
    pictures = sorted(source.glob("*/[0-9].png"))
    rows = [f"{path.relative_to(source)},{describe(number)}" for number, path in enumerate(pictures)]
    (source.parent / "described.csv").write_text("\n".join([f"path,{columns}", *rows]) + "\n")
    return str(source.parent / "described.csv")


def test_a_build_learns_from_labels_first(snapshots: Path) -> None:
    learnt = relevance(snapshots)
    assert learnt.text is not None
    assert learnt.image is not None
    assert learnt.votes is not None
    assert (learnt.text.origin, learnt.text.queries, learnt.text.pairs) == ("labels", 36, 36 * 24)
    assert (learnt.image.origin, learnt.image.queries, learnt.image.pairs) == ("labels", 24, 24 * 24)
    assert learnt.votes.pictures == 24
    # Three captions tell nothing of sixteen dimensions.
    assert opened(snapshots).text_map is None


def test_without_labels_it_learns_from_captions_and_near_duplicates(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    labels = table(source, lambda number: f"picture number {number}", "caption")
    build_snapshot(source, tmp_path / "s", encoder, labels=labels)
    learnt, snapshot = relevance(tmp_path / "s"), opened(tmp_path / "s")
    assert learnt.text is not None
    assert learnt.image is not None
    assert learnt.votes is None
    assert (learnt.text.origin, learnt.text.queries, learnt.image.origin) == ("captions", 24, "near-duplicates")
    assert snapshot.text_map is not None
    assert snapshot.text_map.shape == (16, 16)
    queries = captions(snapshot.catalog, encoder)
    pictures = snapshot.embeddings[[int(text.split()[-1]) for text in queries.sources]]
    mapped = unit(queries.vectors.astype(np.float64) @ snapshot.text_map.T)
    # A caption is nearer to its picture by way of the map.
    assert (mapped * pictures).sum(axis=1).mean() > (queries.vectors * pictures).sum(axis=1).mean()


def test_with_neither_it_learns_of_pictures_alone(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    build_snapshot(source, tmp_path / "s", encoder, labels=None)
    learnt = relevance(tmp_path / "s")
    assert (learnt.text, learnt.votes, opened(tmp_path / "s").text_map) == (None, None, None)
    assert learnt.image is not None
    assert learnt.image.origin == "near-duplicates"
    assert np.load(opened(tmp_path / "s").folder / "text_map.npy").shape == (0, 16)


def test_one_label_for_all_tells_nothing(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    build_snapshot(source, tmp_path / "s", encoder, labels=table(source, lambda _: "thing", "label"))
    learnt = relevance(tmp_path / "s")
    assert (learnt.text, learnt.votes) == (None, None)
    assert learnt.image is not None
    assert learnt.image.origin == "near-duplicates"


def test_two_builds_learn_the_same_bit_for_bit(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    labels = table(source, lambda number: f"label {number % 4},picture number {number}", "label,caption")
    one, other = (build_snapshot(source, tmp_path / name, encoder, labels=labels).manifest for name in "ab")
    assert one.relevance is not None
    assert one.relevance == other.relevance
    assert one.files == other.files
    assert one.files["text_map.npy"].size > 16 * 16 * 4


def test_a_manifest_keeps_what_was_learnt(snapshots: Path, tmp_path: Path) -> None:
    learnt, text_map = relevance(snapshots), unit_vectors(16, 16)
    store = SnapshotStore(tmp_path / "other")
    written = write_snapshot(store, unit_vectors(40, 16), lessons=Lessons(learnt, text_map))
    assert store.manifest(written).relevance == learnt
    assert Manifest.model_validate_json(store.manifest(written).model_dump_json()) == store.manifest(written)
    found = store.open(written).text_map
    assert found is not None
    np.testing.assert_array_equal(found, text_map)


# Building again


def built(source: Path, snapshots: Path, encoder: Encoder, labels: str) -> tuple[int, Manifest]:
    """Build, and return how many texts were encoded for it, and the manifest."""
    counting = Counting(encoder)
    options = BuildOptions(sources=(str(source),), labels=labels)
    store, shown = SnapshotStore(snapshots), reporter(ProgressStyle.PLAIN)
    report = build(options, store, counting, POLICY, local_run(encoder), shown)  # type: ignore[arg-type]
    return counting.texts, report.manifest


def test_a_build_with_the_same_to_learn_from_keeps_what_was_learnt(
    source: Path, tmp_path: Path, encoder: Encoder
) -> None:
    labels = table(source, lambda number: f"label {number % 4},picture number {number}", "label,caption")
    texts, first = built(source, tmp_path / "s", encoder, labels)
    assert texts == 48 + 24  # label sentences, captions
    texts, second = built(source, tmp_path / "s", encoder, labels)
    assert (texts, second.relevance, second.files) == (0, first.relevance, first.files)


def test_a_build_with_other_labels_learns_anew(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    _, first = built(source, tmp_path / "s", encoder, table(source, lambda number: f"label {number % 4}", "label"))
    labels = table(source, lambda number: f"label {number % 3}", "label")
    texts, second = built(source, tmp_path / "s", encoder, labels)
    assert texts == 36
    assert second.relevance != first.relevance
    assert second.relevance == build_snapshot(source, tmp_path / "other", encoder, labels=labels).manifest.relevance
