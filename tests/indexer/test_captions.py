"""Pseudo-captions: retrieval and both rules against numpy, and the command from pictures to table."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from typer.testing import CliRunner, Result

from indexer.captions import (
    Match,
    Percentile,
    Threshold,
    caption,
    mine_captions,
    mine_corpus,
    read_corpus,
    write_captions,
)
from indexer.encoder import Embeddings, Encoder, EncoderName
from indexer.errors import BuildError
from indexer.samples import load_samples
from tests.conftest import draw_collection
from tests.pictures import POLICY
from tests.snapshots import unit, unit_vectors

CORPUS = [
    f"a {colour} {thing} in {place}" for colour in ("red", "green") for thing in ("cat", "dog") for place in "abcde"
]


def candidates(images: Embeddings, texts: Embeddings, top: int) -> list[list[tuple[int, float]]]:
    """Sort all captions for each picture, and return rows and similarities of the best."""
    similarities = images.astype(np.float64) @ texts.astype(np.float64).T
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :top]
    return [[(int(row), float(similarities[i, row])) for row in rows] for i, rows in enumerate(order)]


def assert_equal(found: list[list[Match]], want: list[list[tuple[int, float]]], corpus: list[str]) -> None:
    assert [[match.caption for match in kept] for kept in found] == [[corpus[row] for row, _ in kept] for kept in want]
    scores = [match.score for kept in found for match in kept]
    assert scores == pytest.approx([score for kept in want for _, score in kept], abs=1e-6)


@given(
    pictures=st.integers(1, 12),
    captions=st.integers(1, 40),
    top=st.integers(1, 50),
    threshold=st.floats(-1, 1),
    seed=st.integers(0, 10**6),
)
def test_above_a_threshold_the_nearest_captions_are_those_of_brute_force(
    pictures: int, captions: int, top: int, threshold: float, seed: int
) -> None:
    images, texts = unit_vectors(pictures, 8, seed), unit_vectors(captions, 8, seed + 1)
    corpus = [f"caption {i}" for i in range(captions)]
    want = [[(row, score) for row, score in best if score > threshold] for best in candidates(images, texts, top)]
    assert_equal(mine_captions(images, corpus, texts, Threshold(threshold, top)), want, corpus)


@given(
    pictures=st.integers(1, 12),
    captions=st.integers(1, 40),
    top=st.integers(1, 50),
    percent=st.sampled_from([0.0, 12.5, 50.0, 75.0, 99.0]),
    seed=st.integers(0, 10**6),
)
def test_above_a_percentile_of_all_candidates_the_captions_are_those_of_brute_force(
    pictures: int, captions: int, top: int, percent: float, seed: int
) -> None:
    images, texts = unit_vectors(pictures, 8, seed), unit_vectors(captions, 8, seed + 1)
    corpus = [f"caption {i}" for i in range(captions)]
    best = candidates(images, texts, top)
    ranked = sorted(score for row in best for _, score in row)
    # Linear between the two ranks beside it. Where it is a rank itself, rounding may not decide: half a step is put on.
    place = percent / 100 * (len(ranked) - 1)
    low = int(place)
    if place == low and low + 1 < len(ranked):
        limit = (ranked[low] + ranked[low + 1]) / 2
    else:
        limit = ranked[low] + (place - low) * (ranked[min(low + 1, len(ranked) - 1)] - ranked[low])
    found = mine_captions(images, corpus, texts, Percentile(percent, top))
    want = [[(row, score) for row, score in kept if score > limit] for kept in best]
    assert_equal(found, want if len(ranked) > 1 else [[]], corpus)


def test_a_picture_keeps_what_is_above_the_threshold_and_may_keep_nothing() -> None:
    texts = unit(np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]))
    images = unit(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    found = mine_captions(images, ["east", "north-east", "north"], texts, Threshold(0.7))
    assert [[match.caption for match in kept] for kept in found] == [["east", "north-east"], ["north"], []]
    assert found[0][1].score == pytest.approx(0.8)


def test_the_quarter_above_the_75th_percentile_is_kept_wherever_it_lies() -> None:
    texts = unit_vectors(100, 6)
    described, other = unit(texts[:10].astype(np.float64) + 0.01), unit_vectors(10, 6, seed=3)
    found = mine_captions(np.concatenate([described, other]), CORPUS * 5, texts, Percentile(75, 20))
    kept = [len(each) for each in found]
    assert sum(kept) == 20 * 20 / 4
    assert max(kept) > min(kept)


def test_of_equal_captions_the_earlier_comes_first() -> None:
    texts = unit(np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    found = mine_captions(unit(np.array([[1.0, 0.0]])), list("abcd"), texts, Threshold(0.5))
    assert [match.caption for match in found[0]] == ["b", "c", "d"]


def test_the_paper_keeps_20_captions_above_0_27() -> None:
    assert Threshold() == Threshold(similarity=0.27, top=20)


@pytest.mark.parametrize("percent", [-1, 100, float("nan")])
def test_a_percentile_beyond_its_range_is_refused(percent: float) -> None:
    with pytest.raises(BuildError, match="A percentile lies from 0 to below 100"):
        Percentile(percent)


@pytest.mark.parametrize("rule", [Threshold(0.1, 7), Percentile(60, 7), Threshold(-1, 100)])
@pytest.mark.parametrize("portion", [1, 3, 7, 64, 1000])
def test_a_corpus_encoded_in_portions_gives_the_same(
    encoder: Encoder, rule: Threshold | Percentile, portion: int
) -> None:
    images, texts = unit_vectors(5, 16), encoder.encode_texts(CORPUS)
    whole = mine_captions(images, CORPUS, texts, rule)
    parts = mine_corpus(images, CORPUS, encoder, rule, portion=portion)
    assert [[match.caption for match in kept] for kept in parts] == [[m.caption for m in kept] for kept in whole]
    assert [m.score for kept in parts for m in kept] == pytest.approx([m.score for k in whole for m in k], abs=1e-6)


# The corpus


def test_a_corpus_is_read_once_each_in_order(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("\ufeffa dog\r\na cat\n\n  \nA cat\na dog\nein Kätzchen \na cat", encoding="utf-8")
    assert read_corpus(path) == ["a dog", "a cat", "A cat", "ein Kätzchen"]


def test_a_corpus_may_be_a_table(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text('n,caption\n1,a dog\n2,"a cat, a dog"\n3,\n4,a dog\n')
    (tmp_path / "c.jsonl").write_text('{"captions": ["a dog", "two"]}\n{"text": "a dog"}\n{"caption": "three"}\n')
    parquet.write_table(pa.table({"caption": ["x", None, "y", "x"]}), tmp_path / "c.parquet")
    assert read_corpus(tmp_path / "c.csv") == ["a dog", "a cat, a dog"]
    assert read_corpus(tmp_path / "c.jsonl") == ["a dog", "two", "three"]
    assert read_corpus(tmp_path / "c.parquet") == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("c.txt", b"\n \n", "holds no captions"),
        ("c.csv", b"path,label\na.png,x\n", "holds no captions"),
        ("c.txt", b"\xff", "is not UTF-8"),
        ("c.json", b"[]", r"is a \.txt file or a table \(\.csv, \.jsonl, \.parquet\), not "),
    ],
)
def test_a_corpus_that_is_no_good_is_refused(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BuildError, match=sentence):
        read_corpus(tmp_path / name)


def test_a_missing_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="cannot be read: No such file"):
        read_corpus(tmp_path / "c.txt")


# The table


def test_the_table_is_one_that_samples_are_read_from(tmp_path: Path) -> None:
    draw_collection(tmp_path / "set")
    samples = load_samples(tmp_path / "set", "parent", POLICY)[1:4]
    matches = [[Match("one", 0.5), Match("zwei ü", 0.1234567)], [], [Match("one", 0.3)]]
    write_captions(tmp_path / "c.jsonl", samples, matches)
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert rows == [
        {"path": samples[0].name, "label": "blue", "captions": ["one", "zwei ü"], "scores": [0.5, 0.123457]},
        {"path": samples[1].name, "label": "blue", "captions": [], "scores": []},
        {"path": samples[2].name, "label": "blue", "captions": ["one"], "scores": [0.3]},
    ]
    again = load_samples(tmp_path / "set", str(tmp_path / "c.jsonl"), POLICY)
    said = {sample.name: (sample.label, sample.captions) for sample in again}
    assert [said[sample.name] for sample in samples] == [("blue", ("one", "zwei ü")), ("blue", ()), ("blue", ("one",))]


def test_a_table_that_cannot_be_written_whole_is_not_written(tmp_path: Path) -> None:
    draw_collection(tmp_path / "set")
    samples = load_samples(tmp_path / "set", None, POLICY)
    with pytest.raises(ValueError, match="shorter"):
        write_captions(tmp_path / "c.jsonl", samples, [[]])
    (tmp_path / "old.jsonl").write_text("old")
    with pytest.raises(BuildError, match="exists already"):
        write_captions(tmp_path / "old.jsonl", samples, [[]] * len(samples))
    with pytest.raises(BuildError, match=r"cannot be written to .*: No such file"):
        write_captions(tmp_path / "missing" / "c.jsonl", samples, [[]] * len(samples))
    assert (tmp_path / "old.jsonl").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.jsonl", "set"]


# The command


def run(*arguments: object) -> Result:
    """Run the command."""
    app = typer.Typer()
    app.command()(caption)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_pairs_pictures_with_their_nearest_captions(
    tmp_path: Path, model: EncoderName, encoder: Encoder
) -> None:
    draw_collection(tmp_path / "set")
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS + CORPUS))
    out = tmp_path / "c.jsonl"
    common = ("--data", tmp_path / "set", "--corpus", tmp_path / "corpus.txt", "--model", model.model)
    result = run(*common, "--labels", "parent", "--top", 5, "--percentile", 50, "--out", out)
    assert result.exit_code == 0, result.output
    assert "24 pictures keep 60 captions of a corpus of 20, the least similar at " in result.output
    assert "pictures keep none, 1 files could not be used." in result.output
    samples = load_samples(tmp_path / "set", "parent", POLICY)
    usable = [i for i, sample in enumerate(samples) if sample.label]
    images = encoder.encode_images([encoder.preprocess(samples.image(i)) for i in usable])
    best = candidates(images, encoder.encode_texts(CORPUS), 5)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["path"] for row in rows] == [samples[i].name for i in usable]
    assert [row["label"] for row in rows] == ["blue"] * 8 + ["green"] * 8 + ["red"] * 8
    middle = np.median([score for row in best for _, score in row])
    assert sum(len(row["captions"]) for row in rows) == 60
    for row, all_five in zip(rows, best, strict=True):
        assert row["scores"] == pytest.approx([score for _, score in all_five if score > middle], abs=1e-5)
        assert set(row["captions"]) <= {CORPUS[i] for i, _ in all_five}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--out", "old.jsonl"), "must be a new"),
        (("--out", "new.csv"), "must be a new"),
        (("--out", "missing/new.jsonl"), "must be a new"),
        (("--out", "new.jsonl", "--threshold", 0.2, "--percentile", 50), "either --threshold or --percentile"),
        (("--out", "new.jsonl", "--top", 0), "top"),
    ],
)
def test_wrong_usage_is_refused_before_any_work(
    tmp_path: Path, options: tuple[object, ...], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.jsonl").write_text("old")
    result = run("--data", "missing", "--corpus", "missing", *options)
    assert result.exit_code == 2
    assert sentence in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["old.jsonl"]
