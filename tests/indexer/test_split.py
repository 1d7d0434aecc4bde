"""Which classes are kept back from training."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from indexer.errors import TrainingError
from indexer.finetune.split import hold_out
from indexer.samples import Sample, Samples
from tests.pictures import POLICY


def labelled(labels: list[str | None]) -> Samples:
    """Return samples of pictures that nobody will open."""
    return Samples([Sample(f"{i}.png", label, (), {}) for i, label in enumerate(labels)], [None] * len(labels), POLICY)  # type: ignore[list-item]


@given(
    labels=st.lists(st.sampled_from([*"abcdefgh", None]), min_size=3, max_size=60),
    part=st.floats(0.01, 0.5),
    seed=st.integers(0, 2**32),
)
def test_no_class_is_on_both_sides_and_no_picture_is_lost(labels: list[str | None], part: float, seed: int) -> None:
    # A picture without label is a class of its own.
    classes = len(set(labels) - {None}) + labels.count(None)
    assume(classes >= 3)
    train, test = hold_out(labelled(labels), part, seed)
    ours, theirs = ([sample.label for sample in side] for side in (train, test))
    assert not (set(ours) & set(theirs)) - {None}
    assert len(set(theirs) - {None}) + theirs.count(None) == math.ceil(part * classes)
    assert sorted(sample.name for sample in [*train, *test]) == sorted(f"{i}.png" for i in range(len(labels)))
    again = hold_out(labelled(labels), part, seed)
    assert [list(train), list(test)] == [list(each) for each in again]


def test_another_seed_keeps_other_classes_back() -> None:
    samples = labelled([str(i) for i in range(100)])
    kept = {tuple(sample.label for sample in hold_out(samples, 0.1, seed)[1]) for seed in range(5)}
    assert len(kept) == 5


@pytest.mark.parametrize("labels", [["a", "b", "b"], [None] * 2, ["a"] * 9])
def test_too_few_classes_cannot_be_split(labels: list[str | None]) -> None:
    with pytest.raises(TrainingError, match="none can be kept for the evaluation"):
        hold_out(labelled(labels), 0.1, 0)
