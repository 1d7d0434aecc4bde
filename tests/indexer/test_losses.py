"""The losses, each against its formula written out in loops over double precision numbers."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from indexer.finetune.losses import ArcMargin, MultiCaptionArcMargin, margin_logits
from indexer.finetune.objectives import Captions, ClipObjective, TextObjective
from indexer.torch_runtime import open_clip, torch
from tests.models import new_model

Array = NDArray[np.float64]
MARGIN, SCALE = 0.1, 30.0


def literal_logit(angle: float, own: bool, margin: float, scale: float) -> float:
    if not own:
        return scale * math.cos(angle)
    if math.cos(angle) > math.cos(math.pi - margin):
        return scale * math.cos(angle + margin)
    return scale * (math.cos(angle) - margin * math.sin(math.pi - margin))


def literal_logs(
    image: Array, columns: Array, owned: Sequence[bool], margin: float = MARGIN, scale: float = SCALE
) -> list[float]:
    """Return the logarithms of a picture's softmax over columns."""
    logits = []
    for column, own in zip(columns, owned, strict=True):
        cosine = float(image @ column) / math.sqrt(float(image @ image) * float(column @ column))
        logits.append(literal_logit(math.acos(min(1.0, max(-1.0, cosine))), own, margin, scale))
    most = max(logits)
    total = most + math.log(sum(math.exp(logit - most) for logit in logits))
    return [logit - total for logit in logits]


def literal_arc(images: Array, proxies: Array, labels: Sequence[int]) -> float:
    losses = [
        -literal_logs(image, proxies, [j == label for j in range(len(proxies))])[label]
        for image, label in zip(images, labels, strict=True)
    ]
    return sum(losses) / len(losses)


def literal_captions(images: Array, captions: Array, owned: NDArray[np.bool_], flatness: float) -> float:
    losses = []
    for image, own in zip(images, owned, strict=True):
        logs = literal_logs(image, captions, own.tolist())
        share = [1 / own.sum() if each else 0.0 for each in own]
        loss = -sum(part * log for part, log in zip(share, logs, strict=True))
        loss += flatness * max(-(1 - part) * log for part, log in zip(share, logs, strict=True))
        losses.append(loss)
    return sum(losses) / len(losses)


def literal_infonce(images: Array, texts: Array, scale: float) -> float:
    """Return half the cross entropy of pictures among texts and half that of texts among pictures."""

    def loss(rows: Array, columns: Array) -> float:
        total = 0.0
        for i, row in enumerate(rows):
            logits = [scale * float(row @ column) for column in columns]
            total -= logits[i] - math.log(sum(math.exp(logit) for logit in logits))
        return total / len(rows)

    return (loss(images, texts) + loss(texts, images)) / 2


def slope(function: Callable[[Array], float], at: Array) -> Array:
    """Return the gradient by differences."""
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        for side in (1, -1):
            moved = at.copy()
            moved[place] += side * 1e-6
            found[place] += side * function(moved) / 2e-6
    return found


def leaf(values: Array) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, requires_grad=True)


def arc_margin(proxies: Array) -> ArcMargin:
    loss = ArcMargin(*proxies.shape)
    with torch.no_grad():
        loss.proxies.copy_(torch.from_numpy(proxies))
    return loss


def someones(rng: np.random.Generator, pictures: int, captions: int) -> NDArray[np.bool_]:
    """Draw whose captions are whose: some pictures have none, some captions have several owners."""
    owned: NDArray[np.bool_] = rng.random((pictures, captions)) < rng.choice([0.1, 0.5])
    return owned


@pytest.mark.parametrize("margin", [0.02, 0.1, 0.5])
def test_the_margin_is_added_to_the_angle_of_targets_alone(margin: float) -> None:
    angles = np.linspace(0.01, math.pi - 0.01, 300)
    cosines = torch.tensor(np.cos(angles))
    for own in (True, False):
        found = margin_logits(cosines, torch.full((300,), own), margin, 30.0)
        assert found.dtype == torch.float32
        wanted = [literal_logit(angle, own, margin, 30.0) for angle in angles]
        np.testing.assert_allclose(found.numpy(), wanted, atol=2e-3)


@pytest.mark.parametrize("margin", [0.02, 0.1, 0.5])
def test_a_greater_angle_always_has_a_smaller_logit_also_over_the_seam(margin: float) -> None:
    seam = math.pi - margin
    angles = np.sort(np.concatenate([np.linspace(0, math.pi, 400), [seam - 1e-3, seam + 1e-3]]))
    logits = margin_logits(torch.tensor(np.cos(angles)), torch.ones(402, dtype=torch.bool), margin, 30.0)
    assert np.diff(logits.numpy()).max() < 0


@pytest.mark.parametrize("margin", [0.02, 0.1, 0.5])
def test_at_the_seam_the_logit_steps_down_by_half_the_square_of_the_margin_at_most(margin: float) -> None:
    cosine = math.cos(math.pi - margin)
    sides = torch.tensor([cosine + 1e-6, cosine - 1e-6])
    before, after = margin_logits(sides, torch.ones(2, dtype=torch.bool), margin, 1.0).tolist()
    assert before == pytest.approx(-1, abs=2e-5)  # cos(pi)
    assert after == pytest.approx(-math.cos(margin) - margin * math.sin(margin), abs=2e-5)
    assert -2e-5 <= before - after <= margin**2 / 2 + 2e-5


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), pictures=st.integers(1, 6), classes=st.integers(2, 7), dim=st.integers(3, 9))
def test_arc_margin_is_its_formula(seed: int, pictures: int, classes: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    images, proxies = rng.normal(size=(pictures, dim)), rng.normal(size=(classes, dim))
    labels = rng.integers(0, classes, pictures)
    found = arc_margin(proxies)(leaf(images), torch.from_numpy(labels))
    assert found.item() == pytest.approx(literal_arc(images, proxies, labels.tolist()), abs=3e-3)


def test_the_proxies_are_drawn_as_xavier_says() -> None:
    torch.manual_seed(0)
    proxies = ArcMargin(300, 200).proxies.detach().numpy()
    most = math.sqrt(6 / 500)
    assert np.abs(proxies).max() <= most
    assert proxies.std() == pytest.approx(most / math.sqrt(3), rel=0.01)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    pictures=st.integers(1, 6),
    captions=st.integers(1, 7),
    dim=st.integers(3, 9),
    flatness=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_mc_arc_margin_is_its_formula(seed: int, pictures: int, captions: int, dim: int, flatness: float) -> None:
    rng = np.random.default_rng(seed)
    images, texts = rng.normal(size=(pictures, dim)), rng.normal(size=(captions, dim))
    owned = someones(rng, pictures, captions)
    loss = MultiCaptionArcMargin(flatness=flatness)
    found = loss(leaf(images), leaf(texts), torch.from_numpy(owned))
    assert found.item() == pytest.approx(literal_captions(images, texts, owned, flatness), abs=3e-3)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 8), dim=st.integers(3, 9))
def test_with_one_caption_for_each_picture_mc_arc_margin_is_arc_margin_over_them(
    seed: int, count: int, dim: int
) -> None:
    rng = np.random.default_rng(seed)
    images, texts = rng.normal(size=(count, dim)), rng.normal(size=(count, dim))
    own = rng.permutation(count)
    arc = arc_margin(texts)(leaf(images), torch.from_numpy(own))
    multi = MultiCaptionArcMargin()(leaf(images), leaf(texts), torch.from_numpy(np.eye(count, dtype=bool)[own]))
    assert multi.item() == pytest.approx(arc.item(), abs=1e-5)
    assert multi.item() == pytest.approx(literal_arc(images, texts, own.tolist()), abs=3e-3)


def test_the_gradients_of_arc_margin_are_those_of_its_formula() -> None:
    rng = np.random.default_rng(1)
    images, proxies, labels = rng.normal(size=(4, 5)), rng.normal(size=(3, 5)), [0, 2, 1, 2]
    loss, inputs = arc_margin(proxies), leaf(images)
    loss(inputs, torch.tensor(labels)).backward()
    assert inputs.grad is not None
    assert loss.proxies.grad is not None
    np.testing.assert_allclose(inputs.grad.numpy(), slope(lambda x: literal_arc(x, proxies, labels), images), atol=2e-3)
    np.testing.assert_allclose(
        loss.proxies.grad.numpy(), slope(lambda x: literal_arc(images, x, labels), proxies), atol=2e-3
    )


@pytest.mark.parametrize("flatness", [0.0, 0.1, 1.0])
def test_the_gradient_of_mc_arc_margin_is_that_of_its_formula(flatness: float) -> None:
    rng = np.random.default_rng(2)
    images, texts = rng.normal(size=(4, 5)), rng.normal(size=(6, 5))
    owned = np.array([[1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=bool)
    inputs = leaf(images)
    MultiCaptionArcMargin(flatness=flatness)(inputs, leaf(texts), torch.from_numpy(owned)).backward()
    assert inputs.grad is not None
    wanted = slope(lambda x: literal_captions(x, texts, owned, flatness), images)
    np.testing.assert_allclose(inputs.grad.numpy(), wanted, atol=2e-3)
    # Row 2 is of the picture without captions: only the extra term holds for it.
    assert np.abs(wanted[2]).max() == pytest.approx(0, abs=1e-6) if not flatness else np.abs(wanted[2]).max() > 1e-3


@pytest.mark.parametrize("flatness", [0.0, 0.1])
def test_a_batch_without_captions_has_no_loss_and_no_gradient(flatness: float) -> None:
    images = leaf(np.random.default_rng(0).normal(size=(3, 4)))
    loss = MultiCaptionArcMargin(flatness=flatness)(images, torch.empty(0, 4), torch.empty(3, 0, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert images.grad is not None
    assert images.grad.abs().max() == 0


@pytest.mark.parametrize("flatness", [0.0, 0.1])
def test_nothing_is_nan_where_pictures_equal_or_oppose_their_centres(flatness: float) -> None:
    rows = np.eye(4)[:3]
    columns = np.stack([rows[0], -rows[1], rows[2] * 3])  # cosines of exactly 1, -1 and 1
    owned = torch.eye(3, dtype=torch.bool)
    images, texts, arc = leaf(rows), leaf(columns), arc_margin(columns)
    loss = MultiCaptionArcMargin(flatness=flatness)(images, texts, owned) + arc(images, torch.arange(3))
    loss.backward()
    wanted = literal_captions(rows, columns, owned.numpy(), flatness) + literal_arc(rows, columns, [0, 1, 2])
    assert loss.item() == pytest.approx(wanted, abs=1e-3)
    for grad in (images.grad, texts.grad, arc.proxies.grad):
        assert grad is not None
        assert grad.isfinite().all()


def test_cosines_a_rounding_error_beyond_one_have_finite_logits_and_gradients() -> None:
    cosines = torch.tensor([1.0, -1.0, 1 + 1e-6, -1 - 1e-6, 1 - 1e-7], requires_grad=True)
    logits = margin_logits(cosines, torch.ones(5, dtype=torch.bool))
    (slopes,) = torch.autograd.grad(logits.sum(), cosines)
    assert logits.isfinite().all()
    assert slopes.isfinite().all()


def test_a_caption_of_two_pictures_pushes_neither_away() -> None:
    centres = np.eye(3)[:2]
    images = np.array([[0.3, 0.2, 0.9], [0.2, 0.4, -0.9], [0.1, 0.3, 0.9]])
    captions = Captions([("ours",), ("ours",), ("theirs",)], 40, lambda texts: torch.from_numpy(centres[: len(texts)]))
    texts, owned = captions.of(np.arange(3))
    assert owned.tolist() == [[True, False], [True, False], [False, True]]
    before = literal_captions(images, centres, owned.numpy(), 0.0)
    inputs = leaf(images)
    MultiCaptionArcMargin()(inputs, texts, owned).backward()
    assert inputs.grad is not None
    for i, own in enumerate((0, 0, 1)):
        nearer = images.copy()
        nearer[i] += 1e-3 * centres[own]
        assert literal_captions(nearer, centres, owned.numpy(), 0.0) < before
        assert inputs.grad[i, own] < 0


def test_of_many_captions_the_first_are_used_each_encoded_once() -> None:
    asked: list[str] = []

    def encode(texts: list[str]) -> torch.Tensor:
        asked.extend(texts)
        return torch.tensor([[float(ord(text))] for text in texts])

    captions = Captions([("a", "b", "c"), (), ("b", "d", "e"), ("a",)], 2, encode)
    assert sorted(asked) == ["a", "b", "d"]
    texts, owned = captions.of(np.array([2, 1, 0]))
    named = [chr(int(value)) for value in texts[:, 0]]
    assert {i: {named[j] for j in np.flatnonzero(owned[i])} for i in range(3)} == {
        0: {"b", "d"},
        1: set(),
        2: {"a", "b"},
    }
    texts, owned = captions.of(np.array([1]))
    assert (texts.shape, owned.shape) == ((0, 1), (1, 0))


def test_half_precision_around_the_losses_does_not_reach_their_angles() -> None:
    rng = np.random.default_rng(4)
    images, texts = leaf(rng.normal(size=(6, 8))), leaf(rng.normal(size=(6, 8)))
    owned = torch.eye(6, dtype=torch.bool)
    arc, multi = arc_margin(rng.normal(size=(6, 8))), MultiCaptionArcMargin(flatness=0.1)
    plain = [arc(images, torch.arange(6)).item(), multi(images, texts, owned).item()]
    with torch.autocast("cpu", torch.bfloat16):
        assert [arc(images, torch.arange(6)).item(), multi(images, texts, owned).item()] == plain


def test_plain_clip_and_realignment_minimise_infonce() -> None:
    model = new_model(0).eval()
    tokenize = open_clip.SimpleTokenizer(context_length=16)
    captions = [(name,) for name in ("a cat", "two dogs", "a red star", "rain", "a ship")]
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    clip = ClipObjective(model, captions, tokenize)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        images = model.encode_image(pixels, normalize=True)
        texts = model.encode_text(tokenize([each for (each,) in captions]), normalize=True)
        found = clip(*clip.inputs(np.arange(5), pixels, rng))["loss"].item()
        order = np.array([3, 0, 4])
        realign = TextObjective(model, images, captions, tokenize, layers=16)
        realigned = realign(*realign.inputs(order, None, rng))["loss"].item()
    scale = model.logit_scale.exp().item()
    x, t = images.double().numpy(), texts.double().numpy()
    assert found == pytest.approx(literal_infonce(x, t, scale), abs=1e-4)
    assert realigned == pytest.approx(literal_infonce(x[order], t[order], scale), abs=1e-4)
