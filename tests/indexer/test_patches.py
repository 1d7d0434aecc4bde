"""Patches: what an image tower sees in each part of a picture, and which part that is."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from indexer.encoder import DEMO, Encoder, EncoderName, load_encoder
from indexer.preprocessing import Preprocessing
from indexer.torch_runtime import open_clip, torch
from tests.models import CONFIG, new_model, save_model


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


def test_patches_are_open_clips_own_tokens_in_the_space_of_the_embeddings(model: EncoderName, encoder: Encoder) -> None:
    reference, _, transform = open_clip.create_model_and_transforms(model.model)
    reference.eval().visual.output_tokens = True
    square = picture(32, 32)
    with torch.no_grad():
        _, tokens = reference.visual(transform(square)[None])
        expected = (tokens[0] @ reference.visual.proj).numpy().reshape(4, 4, 16)
    patches = encoder.patches(square)
    assert patches is not None
    np.testing.assert_allclose(patches.vectors, expected / np.linalg.norm(expected, axis=-1, keepdims=True), atol=1e-5)
    assert patches.box == (0, 0, 1, 1)


def test_patches_cover_the_part_that_is_cut_out(encoder: Encoder) -> None:
    wide, tall = encoder.patches(picture(128, 64)), encoder.patches(picture(32, 320))
    assert wide is not None
    assert tall is not None
    assert wide.box == (0.25, 0, 0.75, 1)
    assert tall.box == pytest.approx((0, 0.45, 1, 0.55))


def test_pixels_beyond_the_last_whole_patch_are_covered_by_none(tmp_path: Path) -> None:
    config = CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | {"patch_size": 12}}
    name = EncoderName(model=save_model(tmp_path / "12", new_model(0, config), config))
    patches = load_encoder(name, device="cpu", threads=1).patches(picture(64, 64))
    assert patches is not None
    assert patches.vectors.shape == (2, 2, 16)
    assert patches.box == (0, 0, 0.75, 0.75)


def test_a_tower_without_patches_has_none() -> None:
    assert load_encoder(EncoderName(model=DEMO), device="cpu", threads=1).patches(picture(64, 64)) is None


@given(
    sides=st.tuples(st.integers(20, 200), st.integers(20, 200)),
    size=st.sampled_from([(64, 64), (48, 64), (64, 40)]),
    mode=st.sampled_from(["shortest", "longest", "squash"]),
)
def test_what_is_covered_is_where_the_pixels_come_from(
    sides: tuple[int, int], size: tuple[int, int], mode: str
) -> None:
    width, height = sides
    config = {"size": size, "mean": 0, "std": 1, "interpolation": "bilinear", "resize_mode": mode, "fill_color": 0}
    preprocess = Preprocessing.of(config)
    # Each pixel tells where it is: red from left to right, green from top to bottom, blue that it is one.
    across, down = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    told = preprocess(np.round(np.stack([across, down, np.ones_like(across)], axis=-1) * 255).astype(np.uint8)) / 255
    left, top, right, bottom = preprocess.covers(height, width)
    columns = left + (np.arange(size[1]) + 0.5) / size[1] * (right - left)
    rows = top + (np.arange(size[0]) + 0.5) / size[0] * (bottom - top)
    inside = np.outer((rows > 0) & (rows < 1), (columns > 0) & (columns < 1))
    np.testing.assert_array_equal(told[2] > 0.5, inside)
    # Near the edges there is less to interpolate between.
    assert np.abs(told[0] - columns[None, :])[inside].max() < 0.03
    assert np.abs(told[1] - rows[:, None])[inside].max() < 0.03
