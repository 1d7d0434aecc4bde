"""The plan of a build: what sources list, and what a label table says of it."""

from pathlib import Path

import pytest

from indexer.encoder import Encoder
from indexer.errors import BuildError
from indexer.labels import Description
from indexer.plan import Plan, PlannedItem
from indexer.planning import make_plan, narrower
from indexer.snapshot import BuildOptions
from indexer.sources.fetch import FetchPolicy
from indexer.sources.opening import open_sources
from tests.conftest import POLICY


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Make a collection of two files."""
    for name in ("cats/tom.png", "dogs/rex.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True)
        (tmp_path / "pictures" / name).touch()
    return tmp_path / "pictures"


def planned(pictures: Path, labels: str | None, encoder: Encoder) -> dict[str, PlannedItem]:
    options = BuildOptions(sources=(str(pictures),), labels=labels)
    sources = open_sources(options.sources, FetchPolicy())
    with Plan(pictures.parent / "plan.sqlite") as plan:
        make_plan(plan, options, sources, encoder.spec, POLICY, None, 10, frozenset())
        return {item.key: item for item in plan.items()}


def test_a_table_describes_pictures_by_path_and_is_no_picture_itself(pictures: Path, encoder: Encoder) -> None:
    table = pictures / "labels.csv"
    table.write_text(f"path,label,year\ncats/tom.png,cat,1940\n{pictures}/dogs/rex.png,dog,\nnowhere.png,x,\n")
    found = planned(pictures, str(table), encoder)
    assert {key: item.description for key, item in found.items()} == {
        "cats/tom.png": Description("cat", None, {"year": "1940"}),
        "dogs/rex.png": Description("dog"),
    }


@pytest.mark.parametrize(
    "path",
    ["tom.png", "cats", ".", "/etc/hostname", "x" * 300, "cats/\0.png"],
    ids=["no folder", "a folder", "the source", "elsewhere", "long", "NUL"],
)
def test_a_table_that_names_no_picture_is_refused_with_its_first_path(
    pictures: Path, encoder: Encoder, path: str
) -> None:
    (pictures.parent / "t.csv").write_text(f"path,label\n{path},cat\n")
    with pytest.raises(BuildError) as refused:
        planned(pictures, str(pictures.parent / "t.csv"), encoder)
    assert f"names no picture of {pictures}" in str(refused.value)
    assert repr(path) in str(refused.value)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_an_empty_table_names_no_picture(pictures: Path, encoder: Encoder, name: str, text: str) -> None:
    (pictures.parent / name).write_text(text)
    with pytest.raises(BuildError, match=r"names no picture of .* its first is 'none'"):
        planned(pictures, str(pictures.parent / name), encoder)


def test_the_narrower_of_two_limits_is_the_smaller_of_each() -> None:
    one, other = POLICY, type(POLICY)(max_bytes=POLICY.max_bytes + 1, max_pixels=POLICY.max_pixels - 1)
    assert narrower(one, other) == type(POLICY)(POLICY.max_bytes, POLICY.max_pixels - 1)
