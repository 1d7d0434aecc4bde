import itertools
import json
from collections import Counter
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer import demo
from indexer.demo_shapes import masks
from indexer.errors import BuildError


def files(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.*")}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo") / "pictures"
    assert demo.write_collection(directory, count=130, seed=3) == 130
    return directory


def test_there_are_48_kinds_in_10_colours() -> None:
    assert len(demo.KINDS) == len(set(demo.KINDS)) == 48
    assert len(demo.COLOURS) == len(set(demo.COLOURS)) == 10


def test_no_two_kinds_have_the_same_outline() -> None:
    outlines = {kind: np.asarray(masks(kind, 40, np.eye(2), 0).whole) > 127 for kind in demo.KINDS}
    for one, other in itertools.combinations(demo.KINDS, 2):
        shared = (outlines[one] & outlines[other]).sum() / (outlines[one] | outlines[other]).sum()
        assert shared < 0.95, f"{one} and {other}"


def test_the_same_seed_draws_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    demo.write_collection(tmp_path, count=130, seed=3)
    assert files(tmp_path) == files(drawn)


def test_another_seed_draws_other_pictures(drawn: Path, tmp_path: Path) -> None:
    demo.write_collection(tmp_path, count=2, seed=4)
    first = tmp_path / "star" / "red-star-0-00.jpg"
    assert first.read_bytes() != (drawn / "star" / "red-star-0-00.jpg").read_bytes()


def test_a_complete_collection_is_not_drawn_again(tmp_path: Path) -> None:
    demo.write_collection(tmp_path, count=3)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert demo.write_collection(tmp_path, count=3) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_interrupted_collection_is_completed(tmp_path: Path) -> None:
    demo.write_collection(tmp_path, count=3)
    whole = files(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    next(tmp_path.rglob("red-star*")).unlink()
    assert demo.write_collection(tmp_path, count=3) == 3
    assert files(tmp_path) == whole


def test_a_folder_with_another_collection_is_refused(tmp_path: Path) -> None:
    demo.write_collection(tmp_path, count=3)
    with pytest.raises(BuildError, match="holds another demo collection"):
        demo.write_collection(tmp_path, count=4)


def test_every_picture_can_be_read_and_has_one_line_of_metadata(drawn: Path) -> None:
    lines = (drawn / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    records = {record["path"]: record for record in map(json.loads, lines)}
    paths = {path.relative_to(drawn).as_posix() for path in drawn.glob("*/*")}
    assert len(lines) == 130
    assert set(records) == paths
    for path, record in records.items():
        with Image.open(drawn / path) as image:
            image.load()
            assert image.mode == "RGB"
            assert all(96 <= side <= 256 for side in image.size)
        assert path.startswith(f"{record['kind']}/{record['instance']}-")
        assert record["label"] == record["kind"]
        assert record["instance"].startswith(f"{record['colour']}-{record['kind']}-")
        assert record["caption"] == record["captions"][0]
        assert record["kind"] in " ".join(record["captions"]) or record["count"] > 1
        assert record["pattern"] in demo.PATTERNS
        assert record["background"] in demo.BACKGROUNDS
        assert 1 <= record["count"] <= 4


@pytest.mark.parametrize("count", [1, 2, 19, 25])
def test_a_collection_has_as_many_pictures_as_asked_for(count: int) -> None:
    names = [(thing.name, number) for thing, number in demo._plan(count, 0, demo.Fold.TEST)]
    assert len(set(names)) == count
    assert names[0] == ("red-star-0", 0)


def test_the_default_collection_has_100_pairs_of_two_look_alikes_with_ten_pictures_each() -> None:
    plan = list(demo._plan(2000, 0, demo.Fold.TEST))
    pictures = Counter(thing for thing, _ in plan)
    look_alikes = Counter((thing.kind, thing.colour) for thing in pictures)
    kinds = Counter(kind for kind, _ in look_alikes)
    assert set(pictures.values()) == {10}
    assert len(look_alikes) == 100
    assert set(look_alikes.values()) == {2}
    assert len(kinds) == 48
    assert min(kinds.values()) >= 2


def test_a_large_collection_has_all_480_pairs_and_more_look_alikes() -> None:
    things = {thing for thing, _ in demo._plan(15_000, 0, demo.Fold.TRAIN)}
    look_alikes = Counter((thing.kind, thing.colour) for thing in things)
    assert len(look_alikes) == 480
    assert set(look_alikes.values()) == {4}


def test_captions_never_tell_look_alikes_apart() -> None:
    for kind, colour in demo.pairs(count=400):
        one, other = (demo.instance(0, demo.Fold.TEST, kind, colour, number) for number in (0, 1))
        pictures = [demo.draw(thing, np.random.default_rng(7)) for thing in (one, other)]
        assert pictures[0].conditions == pictures[1].conditions
        assert pictures[0].captions == pictures[1].captions
        assert one.pattern != other.pattern
        assert pictures[0].image.tobytes() != pictures[1].image.tobytes()


def test_no_instance_is_in_both_folds() -> None:
    train, test = (
        {astuple(demo.instance(0, fold, *pair, number))[4:] for pair in demo.pairs(9600) for number in range(5)}
        for fold in demo.Fold
    )
    assert len(train) == len(test) == 2400
    assert train.isdisjoint(test)


def test_the_background_is_never_of_the_things_colour() -> None:
    things = [demo.instance(0, demo.Fold.TEST, "ring", colour, 0) for colour in demo.COLOURS]
    for thing in things:
        behind = {demo.picture_of(thing, 0, number).conditions.background_colour for number in range(15)}
        assert thing.colour not in behind


def test_captions_say_kind_colour_and_conditions_in_plain_english() -> None:
    several = demo.Conditions(count=3, size="", position="", background="plain", background_colour="orange")
    single = demo.Conditions(1, "small", "on the left", "striped", "blue")
    assert demo.captions("leaf", "red", several) == (
        "three red leaves on an orange background",
        "three red leaves",
        "a photo of three red leaves",
        "a picture of three red leaves",
        "a drawing of three red leaves on an orange background",
        "red leaves",
        "three leaves",
        "leaves",
    )
    assert demo.captions("anchor", "orange", single) == (
        "an orange anchor on a striped blue background",
        "an orange anchor",
        "a photo of an orange anchor",
        "a picture of an orange anchor",
        "a drawing of an orange anchor on a striped blue background",
        "orange anchor",
        "an anchor",
        "anchor",
        "a small orange anchor",
        "an orange anchor on the left",
    )


def test_queries_are_fixed_and_each_has_twenty_right_answers() -> None:
    answers = Counter((thing.kind, thing.colour) for thing, _ in demo._plan(2000, 0, demo.Fold.TEST))
    queries = demo.queries()
    assert queries == demo.queries()
    assert queries[0] == demo.Query("a red star", "star", "red")
    assert len(set(queries)) == 50
    assert {answers[query.kind, query.colour] for query in queries} == {20}
