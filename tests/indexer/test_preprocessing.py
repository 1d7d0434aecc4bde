"""What a picture becomes before a tower sees it, against open_clip's own transform."""

import io
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from indexer.errors import EncoderError
from indexer.images import RGB, perceptual_hash, thumbnail
from indexer.preprocessing import Preprocessing, shrink
from indexer.torch_runtime import open_clip
from tests.pictures import FITTING_256, quarters

PLAIN: dict[str, Any] = {
    "size": 32,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.25, 0.2, 0.3],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


def of_open_clip(config: dict[str, Any], rgb: RGB) -> NDArray[np.float64]:
    """Return what open_clip makes of a picture, before it normalises, from 0 to 255."""
    as_it_is = {**config, "mean": [0.0] * 3, "std": [1.0] * 3}
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**as_it_is), is_train=False)
    pixels: NDArray[np.float64] = transform(Image.fromarray(rgb)).numpy().astype(np.float64) * 255
    return pixels


def picture(height: int, width: int, kind: str, seed: int) -> RGB:
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    if kind == "edges":
        return rng.choice(np.array([0, 255], np.uint8), (height, width, 3))
    return quarters(width, height)


sides = st.integers(1, 40) | st.integers(1, 300)


@settings(deadline=None, max_examples=250)
@given(
    height=sides,
    width=sides,
    size=st.integers(1, 80) | st.tuples(st.integers(1, 80), st.integers(1, 80)),
    mode=st.sampled_from(["shortest", "longest", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "random"]),
    fill=st.integers(0, 255),
    kind=st.sampled_from(["noise", "edges", "drawn"]),
    seed=st.integers(0, 9),
)
@example(240, 20, 32, "shortest", "bicubic", 0, "noise", 0)
@example(33, 34, 32, "shortest", "bicubic", 0, "noise", 0)
@example(50, 77, (31, 64), "shortest", "bilinear", 0, "edges", 0)
@example(32, 32, 32, "shortest", "bicubic", 0, "noise", 0)
@example(90, 13, (20, 41), "longest", "bicubic", 127, "noise", 0)
@example(1, 60, 32, "squash", "bicubic", 0, "edges", 0)
def test_pixels_are_open_clips_own_but_for_the_last_bit(
    height: int,
    width: int,
    size: int | tuple[int, int],
    mode: str,
    interpolation: str,
    fill: int,
    kind: str,
    seed: int,
) -> None:
    if mode == "shortest" and max(height, width) > 16 * min(height, width):
        width = height
    ratio = np.max(np.array([height, width]) / size)
    if mode == "longest" and round(min(height, width) / ratio) == 0:
        height = width  # open_clip fails where a side is rounded to nothing
    config = {**PLAIN, "size": size, "resize_mode": mode, "interpolation": interpolation, "fill_color": fill}
    rgb = picture(height, width, kind, seed)
    pixels = Preprocessing.of(config)(rgb)
    expected = of_open_clip(config, rgb)
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert pixels.flags.c_contiguous
    off = np.abs(pixels - expected)
    assert off.max() < 2.01
    assert (off > 1.01).sum() <= 3  # of up to 19,200 values, and of pictures that are nothing but contrast


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_a_photograph_differs_from_open_clips_own_by_1_of_255_at_most(name: str, mode: str) -> None:
    config = {**PLAIN, "size": 224, "resize_mode": mode}
    photograph = load_sample_image(name)
    off = np.abs(Preprocessing.of(config)(photograph) - of_open_clip(config, photograph))
    assert off.max() < 1.01
    assert (off > 0.01).mean() < 0.01


def test_a_picture_of_pillow_and_its_array_become_the_same_pixels() -> None:
    rgb = picture(61, 90, "noise", 0)
    preprocess = Preprocessing.of(PLAIN)
    assert (preprocess(Image.fromarray(rgb)) == preprocess(rgb)).all()
    rgb.flags.writeable = False
    assert (preprocess(rgb) == preprocess(rgb.copy())).all()


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(65_535, 1), (1, 65_535)])
def test_a_strip_of_pixels_is_preprocessed_in_little_memory(size: tuple[int, int], mode: str) -> None:
    config = {**PLAIN, "resize_mode": mode, "fill_color": 7}
    pixels = Preprocessing.of(config)(Image.new("RGB", size, (200, 100, 50)))
    assert pixels.shape == (3, 32, 32)
    assert pixels[:, 15, 15].tolist() == [200, 100, 50]
    assert pixels[:, 0, 0].tolist() == ([7, 7, 7] if mode == "longest" else [200, 100, 50])


def test_the_config_of_a_model_may_name_one_side_and_one_value_for_all_colours() -> None:
    short = Preprocessing.of({**PLAIN, "size": 32, "mean": 0.5, "std": 0.25})
    assert (short.size, short.mean, short.std) == ((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert Preprocessing.of({**PLAIN, "size": [32], "mean": [0.5] * 3, "std": [0.25] * 3}) == short
    assert Preprocessing.of({**PLAIN, "size": [24, 32]}).size == (24, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize_mode": "stretch"}, r"^The model's resize mode is 'stretch'; known are shortest, longest, squash\.$"),
        ({"interpolation": "lanczos"}, r"^The model's interpolation is 'lanczos'; known are bicubic, bilinear, "),
    ],
)
def test_a_way_to_resize_that_is_not_known_is_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        Preprocessing.of({**PLAIN, **change})


def test_a_decoding_process_imports_neither_torchvision_nor_open_clip() -> None:
    preprocess = Preprocessing.of(PLAIN)
    rgb = picture(40, 60, "noise", 1)
    child = (
        "import pickle, sys\n"
        "preprocess, rgb = pickle.load(sys.stdin.buffer)\n"
        "loaded = {'torchvision', 'open_clip', 'onnxruntime', 'scipy'} & sys.modules.keys()\n"
        "assert not loaded, loaded\n"
        "sys.stdout.buffer.write(preprocess(rgb).tobytes())\n"
    )
    work = pickle.dumps((preprocess, rgb))
    done = subprocess.run([sys.executable, "-c", child], input=work, capture_output=True, check=True)
    assert done.stdout == preprocess(rgb).tobytes()


# Small pictures


@pytest.mark.parametrize(("size", "small"), FITTING_256)
def test_a_small_picture_fits_256_and_keeps_the_aspect(size: tuple[int, int], small: tuple[int, int]) -> None:
    assert shrink(Image.new("RGB", size, "navy")).size == small


def test_a_small_picture_makes_the_thumbnail_and_nearly_the_hash_of_the_whole() -> None:
    photograph = load_sample_image("china.jpg")
    small = shrink(photograph)
    reference = Image.fromarray(photograph).resize(small.size, Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(reference)).max() <= 2
    with Image.open(io.BytesIO(thumbnail(small))) as shown:
        assert np.abs(np.asarray(shown).astype(int) - np.asarray(reference)).mean() < 5
    assert (perceptual_hash(small) ^ perceptual_hash(Image.fromarray(photograph))).bit_count() <= 2
