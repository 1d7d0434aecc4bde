"""Samples: pictures and what is said of them, from folders and tables, and their embeddings."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from indexer.encoder import Encoder
from indexer.errors import BuildError, ImageError, Reason
from indexer.samples import Sample, Samples, encode_samples, load_samples
from tests.pictures import POLICY, encode, orientation, quarters

RED = encode(Image.new("RGB", (9, 9), (255, 0, 0)), "PNG")


def write_files(folder: Path, *names: str) -> Path:
    """Write the same red picture under each of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(RED)
    return folder


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows of the same columns as a table of the kind that its ending tells."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        cells = [["\n".join(cell) if isinstance(cell, list) else str(cell) for cell in row.values()] for row in rows]
        lines = [",".join(f'"{cell}"' for cell in row) for row in cells]
        path.write_text("\n".join([",".join(rows[0]), *lines]))
    return path


def names(samples: Samples) -> list[str]:
    """Return the names of samples in order."""
    return [sample.name for sample in samples]


def refused(samples: Samples, i: int) -> Reason:
    """Have a picture refused, and return the reason."""
    with pytest.raises(ImageError) as error:
        samples.read(i)
    return error.value.reason


@pytest.fixture
def set_of_four(tmp_path: Path) -> Samples:
    """Make a set with labels, captions, and a column that some rows lack."""
    write_files(tmp_path, *"abcd")
    said: list[dict[str, Any]] = [
        {"split": "test", "n": 1},
        {"split": "train", "n": 1},
        {"split": "test", "n": 2.5},
        {"ok": True},
    ]
    rows = [{"path": name, "label": name.upper(), "caption": f"a {name}", **said[i]} for i, name in enumerate("abcd")]
    return load_samples(write_table(tmp_path / "t.jsonl", rows), None, POLICY)


# Folders


def test_a_folder_gives_every_file_in_the_order_of_a_build(tmp_path: Path) -> None:
    write_files(tmp_path, "b.png", "a/2.png", "a/10.png", "c.txt", ".hidden.png", ".git/x.png")
    samples = load_samples(tmp_path, None, POLICY)
    assert list(samples) == [Sample(name, None, (), {}) for name in ("b.png", "c.txt", "a/10.png", "a/2.png")]


def test_parent_labels_by_the_name_of_the_folder(tmp_path: Path) -> None:
    write_files(tmp_path, "x.png", "cats/1.png", "more/dogs/1.png")
    assert load_samples(tmp_path, "parent", POLICY).column("label") == [None, "cats", "dogs"]


def test_pictures_of_gpr1200_are_labelled_and_ordered_by_the_number_in_front(tmp_path: Path) -> None:
    write_files(tmp_path, "10_b.jpg", "2_z_1.jpg", "10_a.jpg", "0_3.jpg", "007_x.jpg", "1199_y.jpg")
    samples = load_samples(tmp_path, "gpr1200", POLICY)
    assert names(samples) == ["0_3.jpg", "2_z_1.jpg", "007_x.jpg", "10_a.jpg", "10_b.jpg", "1199_y.jpg"]
    assert samples.column("label") == ["0", "2", "7", "10", "10", "1199"]


@pytest.mark.parametrize("name", ["x.jpg", "x_1.jpg", "12.jpg", "_1.jpg", "1-2_3.jpg", "٣_x.jpg", "readme"])
def test_a_file_that_is_not_named_as_in_gpr1200_is_named(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, "1_a.jpg", name)
    with pytest.raises(BuildError, match=rf"17_anything\.jpg.*not '{name}'\.$"):
        load_samples(tmp_path, "gpr1200", POLICY)


def test_linked_folders_are_left_out_and_a_link_out_of_the_collection_costs_itself(tmp_path: Path) -> None:
    write_files(tmp_path, "outside/secret.png", "pictures/a.png")
    (tmp_path / "pictures" / "folder").symlink_to(tmp_path / "outside")
    (tmp_path / "pictures" / "out.png").symlink_to(tmp_path / "outside" / "secret.png")
    (tmp_path / "pictures" / "in.png").symlink_to(tmp_path / "pictures" / "a.png")
    samples = load_samples(tmp_path / "pictures", None, POLICY)
    assert names(samples) == ["a.png", "in.png", "out.png"]
    assert samples.read(0) == samples.read(1) == RED
    assert refused(samples, 2) is Reason.OUTSIDE_SOURCE


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_a_table_describes_the_pictures_of_a_folder(tmp_path: Path, kind: str) -> None:
    write_files(tmp_path, "a.png", "b/c.png", "d.png")
    rows = [
        {"path": "b/c.png", "label": "c", "captions": ["one", "two"], "caption": "three", "by": "me"},
        {"path": str(tmp_path / "a.png"), "label": "a", "captions": ["four"], "caption": "five", "by": "you"},
    ]
    samples = load_samples(tmp_path, str(write_table(tmp_path / f"table{kind}", rows)), POLICY)
    assert list(samples) == [
        Sample("a.png", "a", ("five", "four"), {"by": "you"}),
        Sample("d.png", None, (), {}),
        Sample("b/c.png", "c", ("three", "one", "two"), {"by": "me"}),
    ]


# Tables


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_a_table_is_a_set_in_the_order_of_its_rows(tmp_path: Path, kind: str) -> None:
    write_files(tmp_path, "set/b.png", "set/a.png", "set/unnamed.png", "elsewhere/c.png")
    rows = [
        {"file": "b.png", "label": "x", "text": "a b"},
        {"file": str(tmp_path / "elsewhere" / "c.png"), "label": "y", "text": "a c"},
        {"file": str(tmp_path / "set" / "a.png"), "label": "x", "text": "an a"},
    ]
    samples = load_samples(write_table(tmp_path / "set" / f"table{kind}", rows), None, POLICY)
    assert list(samples) == [
        Sample("b.png", "x", ("a b",), {}),
        Sample(str(tmp_path / "elsewhere" / "c.png"), "y", ("a c",), {}),
        Sample("a.png", "x", ("an a",), {}),
    ]
    assert [samples.read(i) for i in range(3)] == [RED] * 3


def test_captions_of_several_rows_add_up_and_of_the_rest_the_last_row_counts(tmp_path: Path) -> None:
    write_files(tmp_path, "a.png", "b.png")
    rows = [
        {"path": "a.png", "caption": "one", "label": "x", "n": 1},
        {"path": "b.png", "caption": "two", "label": "y", "n": 2},
        {"path": "./a.png", "caption": "three", "label": "z", "n": 3},
        {"path": "a.png", "caption": "one", "label": "z", "n": 4},
    ]
    samples = load_samples(write_table(tmp_path / "t.csv", rows), None, POLICY)
    assert list(samples) == [
        Sample("a.png", "z", ("one", "three"), {"n": "4"}),
        Sample("b.png", "y", ("two",), {"n": "2"}),
    ]


def test_a_row_that_leads_out_of_the_folder_of_its_table_or_to_nothing_costs_itself(tmp_path: Path) -> None:
    write_files(tmp_path, "secret.png", "set/a.png", "set/dir/x.png")
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "set" / "round.png").symlink_to(tmp_path / "set" / "round.png")
    (tmp_path / "set" / "big.png").write_bytes(bytes(POLICY.max_bytes + 1))
    paths = ["a.png", "../secret.png", "link.png", "missing.png", "dir", "round.png", "big.png"]
    table = write_table(tmp_path / "set" / "t.jsonl", [{"path": path} for path in paths])
    samples = load_samples(table, None, POLICY)
    assert samples.read(0) == RED
    assert [refused(samples, i) for i in range(1, 7)] == [
        Reason.OUTSIDE_SOURCE,
        Reason.OUTSIDE_SOURCE,
        Reason.UNREADABLE,
        Reason.UNREADABLE,
        Reason.UNREADABLE,
        Reason.TOO_MANY_BYTES,
    ]


def test_a_link_out_of_the_folder_of_an_absolute_path_costs_itself(tmp_path: Path) -> None:
    write_files(tmp_path, "secret.png", "there/a.png", "set/x.png")
    (tmp_path / "there" / "link.png").symlink_to(tmp_path / "secret.png")
    rows = [{"path": str(tmp_path / "there" / name)} for name in ("a.png", "link.png")]
    samples = load_samples(write_table(tmp_path / "set" / "t.jsonl", rows), None, POLICY)
    assert samples.read(0) == RED
    assert refused(samples, 1) is Reason.OUTSIDE_SOURCE


def test_a_second_table_stands_in_place_of_what_the_first_one_says(tmp_path: Path) -> None:
    write_files(tmp_path, "a.png", "b.png")
    own = [{"path": name, "label": "x", "caption": "old", "split": "train", "n": 1} for name in ("a.png", "b.png")]
    mined = [{"path": "a.png", "label": None, "captions": ["new", "newer"], "n": 2}]
    samples = load_samples(
        write_table(tmp_path / "own.jsonl", own), str(write_table(tmp_path / "mined.jsonl", mined)), POLICY
    )
    assert list(samples) == [
        Sample("a.png", "x", ("new", "newer"), {"split": "train", "n": 2}),
        Sample("b.png", "x", ("old",), {"split": "train", "n": 1}),
    ]


# Refusals


def test_what_is_no_set_is_refused_with_what_would_be_one(tmp_path: Path) -> None:
    write_files(tmp_path, "a.png")
    for path in (tmp_path / "a.png", tmp_path / "missing"):
        with pytest.raises(
            BuildError, match=r"no folder of pictures, no table \(\.csv, \.jsonl, \.parquet\) and no Web"
        ):
            load_samples(path, None, POLICY)


def test_an_empty_folder_and_an_empty_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.csv").write_text("path,label\n")
    for path in (tmp_path / "empty", tmp_path / "t.csv"):
        with pytest.raises(BuildError, match="holds no files"):
            load_samples(path, None, POLICY)


def test_a_table_of_nothing_that_exists_is_refused_with_its_first_path(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", [{"path": "nowhere/a.png"}, {"path": "b.png"}])
    with pytest.raises(BuildError, match=r"names no picture that exists.*relative to .*'nowhere/a\.png'\.$"):
        load_samples(table, None, POLICY)


def test_labels_that_name_none_of_the_pictures_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "a.png")
    table = write_table(tmp_path / "t.csv", [{"path": "x.png"}])
    with pytest.raises(BuildError, match=r"names no picture of .*; its first is 'x\.png', theirs 'a\.png'"):
        load_samples(tmp_path, str(table), POLICY)


@pytest.mark.parametrize("labels", ["parent", "gpr1200"])
def test_labels_by_names_need_a_folder(tmp_path: Path, labels: str) -> None:
    table = write_table(write_files(tmp_path, "1_a.png") / "t.csv", [{"path": "1_a.png"}])
    with pytest.raises(BuildError, match="names of files in a folder"):
        load_samples(table, labels, POLICY)


def test_other_labels_are_refused_as_a_build_refuses_them(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="Labels come from 'parent' or a table"):
        load_samples(write_files(tmp_path, "a.png"), "parents", POLICY)


def test_captions_that_are_no_texts_are_refused(tmp_path: Path) -> None:
    table = write_table(write_files(tmp_path, "a.png") / "t.jsonl", [{"path": "a.png", "captions": 7}])
    with pytest.raises(BuildError, match="'captions' must hold a list of texts"):
        load_samples(table, None, POLICY)


# The sequence


def test_pictures_are_upright_rgb(tmp_path: Path) -> None:
    stored = encode(Image.fromarray(np.rot90(quarters())), "PNG", exif=orientation(6))
    (tmp_path / "a.png").write_bytes(stored)
    image = load_samples(tmp_path, None, POLICY).image(0)
    assert image.mode == "RGB"
    assert (np.asarray(image) == quarters()).all()


def test_a_subset_keeps_its_pictures_and_its_order(tmp_path: Path) -> None:
    for shade in range(5):
        (tmp_path / f"{shade}.png").write_bytes(encode(Image.new("RGB", (2, 2), (shade, 0, 0)), "PNG"))
    samples = load_samples(tmp_path, None, POLICY)
    for chosen in (samples.subset([4, 1, 1]), samples.subset(np.array([4, 1, 1])), samples[4:0:-3]):
        shades = [int(np.asarray(chosen.image(i))[0, 0, 0]) for i in range(len(chosen))]
        assert names(chosen) == [f"{shade}.png" for shade in shades]
    assert names(samples.subset(np.array([4, 1, 1]))) == ["4.png", "1.png", "1.png"]
    assert names(samples[4:0:-3]) == ["4.png", "1.png"]
    assert samples[-1].name == "4.png"
    with pytest.raises(IndexError):
        samples[5]


def test_a_column_is_text(set_of_four: Samples) -> None:
    assert set_of_four.column("label") == ["A", "B", "C", "D"]
    assert set_of_four.column("split") == ["test", "train", "test", None]
    assert set_of_four.column("n") == ["1", "1", "2.5", None]
    assert set_of_four.column("ok") == [None, None, None, "true"]


def test_a_column_that_no_sample_has_is_refused_with_those_there_are(set_of_four: Samples) -> None:
    with pytest.raises(BuildError, match=r"^No picture has a column 'spilt'; there are: label, n, ok, split\.$"):
        set_of_four.column("spilt")


def test_labels_may_be_missing_altogether(tmp_path: Path) -> None:
    assert load_samples(write_files(tmp_path, "a", "b"), None, POLICY).column("label") == [None, None]


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        ({}, "abcd"),
        ({"split": "test"}, "ac"),
        ({"split": "test", "n": "1"}, "a"),
        ({"label": "B"}, "b"),
        ({"ok": "true"}, "d"),
    ],
)
def test_where_keeps_the_samples_whose_columns_are_equal(
    set_of_four: Samples, conditions: dict[str, str], found: str
) -> None:
    assert names(set_of_four.where(conditions)) == list(found)


def test_where_nothing_matches_the_wish_is_repeated(set_of_four: Samples) -> None:
    with pytest.raises(BuildError, match=r"^None of 4 pictures has split = 'train' and n = '2\.5'\.$"):
        set_of_four.where({"split": "train", "n": "2.5"})
    with pytest.raises(BuildError, match="No picture has a column 'x'"):
        set_of_four.where({"split": "train", "x": "1"})


def test_other_labels_and_captions_leave_the_set_itself_alone(set_of_four: Samples) -> None:
    before = list(set_of_four)
    other = set_of_four.relabelled(["1", None, "2", "1"]).recaptioned([["x"], [], ("y", "z"), ["x"]])
    assert other.column("label") == ["1", None, "2", "1"]
    assert [sample.captions for sample in other] == [("x",), (), ("y", "z"), ("x",)]
    assert [(sample.name, sample.metadata) for sample in other] == [(one.name, one.metadata) for one in before]
    assert list(set_of_four) == before
    assert other.read(2) == RED


def test_other_labels_must_be_as_many(set_of_four: Samples) -> None:
    with pytest.raises(ValueError, match="shorter"):
        set_of_four.relabelled(["1"])
    with pytest.raises(ValueError, match="shorter"):
        set_of_four.recaptioned([["1"]])


def test_a_set_can_be_sent_to_another_process(set_of_four: Samples) -> None:
    again = pickle.loads(pickle.dumps(set_of_four))  # noqa: S301 - our own bytes
    assert list(again) == list(set_of_four)
    assert again.read(3) == RED


# Embeddings


def test_embeddings_are_those_of_each_picture_and_a_bad_one_costs_itself(tmp_path: Path, encoder: Encoder) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (150, 24, 32, 3), np.uint8)
    for i in range(150):
        (tmp_path / f"{i:03}.png").write_bytes(encode(pixels[i], "PNG") if i % 50 else b"no picture")
    samples = load_samples(tmp_path, None, POLICY)
    encoded = encode_samples(samples, encoder)
    assert names(encoded.samples) == [f"{i:03}.png" for i in range(150) if i % 50]
    assert [(name, error.reason) for name, error in encoded.skipped] == [
        (f"{i:03}.png", Reason.NOT_AN_IMAGE) for i in (0, 50, 100)
    ]
    for row in (0, 48, 49, 100, 146):
        image = Image.open(tmp_path / encoded.samples[row].name)
        alone = encoder.encode_images([encoder.preprocess(image)])[0]
        assert encoded.embeddings[row] == pytest.approx(alone, abs=1e-5)
    assert encoded.embeddings.shape == (147, 16)


class Steps:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def update(self, stage: str, done: int, total: int) -> None:
        self.seen.append((stage, done, total))

    def close(self) -> None:
        """Nothing is open."""


def test_progress_counts_every_picture(tmp_path: Path, encoder: Encoder) -> None:
    steps = Steps()
    write_files(tmp_path, *(f"{i}.png" for i in range(70)))
    (tmp_path / "3.png").write_bytes(b"")
    encode_samples(load_samples(tmp_path, None, POLICY), encoder, steps)
    assert steps.seen == [("encode", 64, 70), ("encode", 70, 70)]


def test_a_set_without_one_usable_picture_is_refused_with_the_reasons(tmp_path: Path, encoder: Encoder) -> None:
    for name, data in {"a": b"", "b": b"text", "c": b"text"}.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(BuildError, match=r"^None of 3 pictures can be used \(2 not_an_image, 1 empty\)\.$"):
        encode_samples(load_samples(tmp_path, None, POLICY), encoder)
