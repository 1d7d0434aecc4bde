"""Which pictures make a batch, and what is done to their pixels."""

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from indexer.encoder import DEMO, Encoder, EncoderName, load_encoder
from indexer.errors import TrainingError
from indexer.finetune.batches import Chance, Pictures, Place, batches, epoch_order, load, random_at, steps_per_epoch
from indexer.finetune.recipes import Augmentation
from indexer.open_clip_encoder import load_model
from indexer.samples import Samples, load_samples
from tests.pictures import POLICY

AS_IT_IS = Augmentation(margin=1, flip=0, jitter=0)


def place(index: int, position: int = 0, epoch: int = 0) -> Place:
    return Place(stage=1, epoch=epoch, position=position, index=index)


@pytest.fixture
def noise(tmp_path: Path) -> Samples:
    """Write six pictures of noise, 90 x 60, the second of which is broken."""
    rng = np.random.default_rng(0)
    for i in range(6):
        image = Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
        image.save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:300])
    return load_samples(tmp_path, None, POLICY)


@pytest.fixture(scope="module")
def squashing() -> Encoder:
    """Load the demo model, which squashes pictures to squares of 64."""
    return load_encoder(EncoderName(model=DEMO), device="cpu", threads=1)


@pytest.fixture(scope="module")
def demo_preprocess() -> dict[str, Any]:
    return load_model(EncoderName(model=DEMO)).preprocess


def test_an_epoch_has_every_picture_once() -> None:
    order = epoch_order(50, random_at(Chance.ORDER, 0))
    assert sorted(order.tolist()) == list(range(50))
    assert order.tolist() != list(range(50))


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 2**32))
def test_where_classes_take_turns_all_come_equally_often_and_so_do_the_pictures_of_each(
    sizes: list[int], seed: int
) -> None:
    classes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    order = epoch_order(len(classes), random_at(Chance.ORDER, seed), classes)
    assert len(order) == len(classes)
    turns = Counter(classes[order].tolist())
    assert max(turns.values()) - min(turns.get(number, 0) for number in range(len(sizes))) <= 1
    for first in range(0, len(order), len(sizes)):
        turn = classes[order[first : first + len(sizes)]]
        assert len(set(turn.tolist())) == len(turn)
    for number in range(len(sizes)):
        seen = Counter({int(i): 0 for i in np.flatnonzero(classes == number)})
        seen.update(int(i) for i in order if classes[i] == number)
        assert max(seen.values()) - min(seen.values()) <= 1
    assert order.tolist() == epoch_order(len(classes), random_at(Chance.ORDER, seed), classes).tolist()


def test_every_epoch_has_another_order() -> None:
    classes = np.arange(60) % 3
    for given_classes in (None, classes):
        orders = {tuple(epoch_order(60, random_at(Chance.ORDER, 0, 1, epoch), given_classes)) for epoch in range(5)}
        assert len(orders) == 5


def test_chance_at_one_place_has_nothing_to_do_with_chance_at_another() -> None:
    places: list[tuple[Chance, tuple[int, ...]]] = [
        (Chance.PICTURE, (3, 1, 2)),
        (Chance.PICTURE, (3, 2, 1)),
        (Chance.PICTURE, (3, 1, 3)),
        (Chance.MODEL, (3, 1, 2)),
        (Chance.ORDER, (3, 1, 2)),
        (Chance.ORDER, (3, 1)),
        (Chance.ORDER, (3, 0)),
        (Chance.CAPTION, (3, 1, 2)),
    ]
    drawn = {int(random_at(what, *place).integers(2**63)) for what, place in places}
    assert len(drawn) == len(places)
    assert int(random_at(Chance.PICTURE, 3, 1, 2).integers(2**63)) in drawn


@pytest.mark.parametrize(
    ("count", "batch", "parts", "sizes"),
    [(10, 4, 1, [4, 4]), (10, 4, 2, [4, 4]), (10, 5, 2, [4, 4]), (10, 5, 5, [5, 5]), (3, 8, 1, [3]), (3, 8, 2, [2])],
)
def test_batches_are_of_equal_size_and_can_be_divided(count: int, batch: int, parts: int, sizes: list[int]) -> None:
    order = np.random.default_rng(0).permutation(count)
    found = batches(order, batch, parts)
    assert [len(each) for each in found] == sizes
    assert np.concatenate(found).tolist() == order[: sum(sizes)].tolist()
    assert steps_per_epoch(count, batch) == len(sizes)


def test_fewer_pictures_than_parts_are_refused() -> None:
    with pytest.raises(TrainingError, match="3 pictures cannot be divided into 4 parts"):
        batches(np.arange(3), 8, 4)


def test_a_picture_that_is_not_changed_is_what_the_model_sees_when_it_serves(
    noise: Samples, squashing: Encoder, demo_preprocess: dict[str, Any]
) -> None:
    index, pixels = Pictures(noise, demo_preprocess, AS_IT_IS, seed=0, keep=False)[place(3)]
    assert index == 3
    # Training resizes by Pillow, serving by torch, which differs by 1 of 255 at most.
    seen = (pixels.numpy() + 1) * 127.5
    np.testing.assert_allclose(seen, squashing.preprocess(noise.image(3)), atol=1.01)


def test_a_picture_whose_shorter_side_is_resized_keeps_its_shape(
    noise: Samples, model: EncoderName, encoder: Encoder
) -> None:
    pictures = Pictures(noise, load_model(model).preprocess, AS_IT_IS, seed=0, keep=False)
    whole = np.asarray(noise.image(0).resize((48, 32), Image.Resampling.BICUBIC), np.float64) / 255
    whole = ((whole - 0.5) / 0.25).transpose(2, 0, 1)
    seen = []
    for epoch in range(20):
        _, pixels = pictures[place(0, epoch=epoch)]
        fits = [left for left in range(17) if np.abs(whole[:, :, left : left + 32] - pixels.numpy()).max() < 1e-5]
        assert len(fits) == 1
        seen += fits
    assert min(seen) < 4
    assert max(seen) > 12
    # The one in the middle is what the model sees when it serves.
    middle = (whole[:, :, 8:40] * 0.25 + 0.5) * 255
    np.testing.assert_allclose(middle, encoder.preprocess(noise.image(0)), atol=1.01)


def test_a_picture_is_resized_by_the_margin_and_cropped_anywhere(
    noise: Samples, demo_preprocess: dict[str, Any]
) -> None:
    pictures = Pictures(noise, demo_preprocess, Augmentation(margin=1.125, flip=0, jitter=0), seed=0, keep=True)
    frame = np.asarray(noise.image(2).resize((72, 72), Image.Resampling.BICUBIC), np.float64) / 127.5 - 1
    frame = frame.transpose(2, 0, 1)
    corners = set()
    for epoch in range(12):
        _, pixels = pictures[place(2, epoch=epoch)]
        fits = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if np.abs(frame[:, top : top + 64, left : left + 64] - pixels.numpy()).max() < 1e-5
        ]
        assert len(fits) == 1
        corners.add(fits[0])
    assert len(corners) > 6


def test_pictures_are_mirrored_as_often_as_asked(noise: Samples, demo_preprocess: dict[str, Any]) -> None:
    _, plain = Pictures(noise, demo_preprocess, AS_IT_IS, seed=0, keep=True)[place(0)]
    for flip, least, most in ((0.0, 0, 0), (0.5, 10, 30), (1.0, 40, 40)):
        pictures = Pictures(noise, demo_preprocess, Augmentation(margin=1, flip=flip, jitter=0), seed=0, keep=True)
        mirrored = 0
        for epoch in range(40):
            _, pixels = pictures[place(0, epoch=epoch)]
            assert pixels.equal(plain) or pixels.equal(plain.flip(2))
            mirrored += pixels.equal(plain.flip(2))
        assert least <= mirrored <= most


def test_light_varies_by_the_jitter(tmp_path: Path, demo_preprocess: dict[str, Any]) -> None:
    # On one grey, neither contrast nor saturation shows, but for what is lost in bytes.
    Image.new("RGB", (64, 64), (120, 120, 120)).save(tmp_path / "grey.png")
    grey = load_samples(tmp_path, None, POLICY)
    pictures = Pictures(grey, demo_preprocess, Augmentation(margin=1, flip=0, jitter=0.4), seed=0, keep=True)
    factors = [float((pictures[place(0, epoch=epoch)][1].mean() + 1) * 127.5 / 120) for epoch in range(60)]
    assert 0.57 < min(factors) < 0.7
    assert 1.3 < max(factors) < 1.43


def test_a_picture_looks_the_same_at_the_same_place_and_otherwise_at_another(
    noise: Samples, demo_preprocess: dict[str, Any]
) -> None:
    pictures = Pictures(noise, demo_preprocess, Augmentation(), seed=0, keep=True)
    again = Pictures(noise, demo_preprocess, Augmentation(), seed=0, keep=False)
    other = Pictures(noise, demo_preprocess, Augmentation(), seed=1, keep=False)
    _, pixels = pictures[place(0)]
    for each in (pictures, pictures, again):
        assert each[place(0)][1].equal(pixels)
    for _, different in (pictures[place(0, 1)], pictures[place(0, 0, 1)], other[place(0)]):
        assert not different.equal(pixels)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # what DataLoader does, from Python 3.12 on
@pytest.mark.parametrize("workers", [1, 2])
def test_processes_that_decode_do_not_change_what_is_seen(
    noise: Samples, demo_preprocess: dict[str, Any], workers: int
) -> None:
    pictures = Pictures(noise, demo_preprocess, Augmentation(), seed=0, keep=False)
    plan = [[place(i, position) for position, i in enumerate(batch)] for batch in ([0, 1, 2], [5, 4], [3, 3])]
    here = list(load(pictures, plan, 0))
    there = list(load(pictures, plan, workers))
    assert [each[0].tolist() for each in there] == [each[0].tolist() for each in here]
    assert all(ours[1].equal(theirs[1]) for ours, theirs in zip(here, there, strict=True))


def test_a_broken_picture_is_stood_in_for_by_the_next(noise: Samples, demo_preprocess: dict[str, Any]) -> None:
    pictures = Pictures(noise, demo_preprocess, Augmentation(), seed=0, keep=True)
    index, pixels = pictures[place(1)]
    assert index == 2
    assert pixels.equal(pictures[place(2)][1])
    last = Pictures(noise.subset([0, 2, 1]), demo_preprocess, Augmentation(), seed=0, keep=True)
    assert last[place(2)][0] == 0


def test_where_every_picture_is_broken_training_says_so(noise: Samples, demo_preprocess: dict[str, Any]) -> None:
    pictures = Pictures(noise.subset([1, 1]), demo_preprocess, Augmentation(), seed=0, keep=True)
    with pytest.raises(TrainingError, match="None of the training pictures can be decoded"):
        _ = pictures[place(0)]


def test_a_picture_of_an_extreme_shape_is_cut_before_it_is_blown_up(tmp_path: Path, model: EncoderName) -> None:
    Image.new("RGB", (1, 30_000), "teal").save(tmp_path / "long.png")
    pictures = Pictures(
        load_samples(tmp_path, None, POLICY), load_model(model).preprocess, Augmentation(), seed=0, keep=True
    )
    assert pictures[place(0)][1].shape == (3, 32, 32)
    assert pictures._resized(0).numel() <= 3 * 36 * 36 * 16


def test_a_resize_mode_that_training_does_not_know_is_named(noise: Samples, demo_preprocess: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=re.escape("squash, shortest; this model has longest")):
        Pictures(noise, {**demo_preprocess, "resize_mode": "longest"}, Augmentation(), seed=0, keep=False)


def test_pictures_are_kept_only_while_there_is_room(
    noise: Samples, demo_preprocess: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[Pictures.__module__], "_KEPT_BYTES", 2 * 72 * 72 * 3)
    pictures = Pictures(noise, demo_preprocess, Augmentation(), seed=0, keep=True)
    for index in (0, 2, 3, 0):
        assert pictures[place(index)][0] == index
    assert sorted(pictures._kept) == [0, 2]
