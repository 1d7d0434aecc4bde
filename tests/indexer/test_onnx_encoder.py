"""ONNX Runtime's encoder against torch's, and the cache of exported towers."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.encoder import DEMO, Encoder, EncoderName, accelerated, load_encoder
from indexer.errors import EncoderError
from indexer.onnx_encoder import OnnxEncoder, _publish
from indexer.open_clip_encoder import OpenClipEncoder
from indexer.torch_runtime import torch
from tests.models import new_model, save_model

TEXTS = ["a red star", "two birds", "", "a very long text " * 20]


CHILD = (
    "import sys, warnings\n"
    "warnings.simplefilter('error')\n"
    "from pathlib import Path\n"
    "from indexer.encoder import EncoderName, accelerated, load_encoder\n"
    "encoder = load_encoder(EncoderName(model=sys.argv[1]), device='cpu', threads=1)\n"
    "for precision in sys.argv[3:]:\n"
    "    accelerated(encoder, Path(sys.argv[2]), threads=1, precision=precision).encode_texts(['a'])\n"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, model: EncoderName) -> Path:
    """Export the tiny model once, in both precisions, in a process that must have nothing to say."""
    cache = tmp_path_factory.mktemp("onnx")
    command = [sys.executable, "-c", CHILD, model.model, str(cache), "fp32", "int8"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)
    return cache


@pytest.fixture
def cache(tmp_path: Path, exported: Path) -> Path:
    """Copy what was exported, to change it."""
    return Path(shutil.copytree(exported, tmp_path / "cache"))


def pictures(encoder: Encoder, count: int) -> list[NDArray[np.uint8]]:
    height, width = encoder.preprocess(np.zeros((9, 9, 3), np.uint8)).shape[1:]
    return list(np.random.default_rng(0).integers(0, 256, (count, 3, height, width), np.uint8))


def written(cache: Path) -> dict[str, int]:
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


def test_embeddings_are_those_of_torch(encoder: Encoder, exported: Path) -> None:
    onnx = accelerated(encoder, exported, threads=1)
    pixels = pictures(encoder, 37)
    np.testing.assert_allclose(onnx.encode_images(pixels), encoder.encode_images(pixels), atol=1e-5)
    np.testing.assert_allclose(onnx.encode_texts(TEXTS), encoder.encode_texts(TEXTS), atol=1e-5)
    assert onnx.encode_images([]).shape == onnx.encode_texts([]).shape == (0, 16)


def test_it_is_the_same_encoder_but_for_what_runs_it(encoder: Encoder, exported: Path) -> None:
    onnx = accelerated(encoder, exported, threads=1)
    assert onnx.spec == encoder.spec
    assert onnx.logit_scale == encoder.logit_scale
    assert onnx.preprocess is encoder.preprocess
    assert onnx.count_tokens(TEXTS) == encoder.count_tokens(TEXTS)
    assert onnx.segments("a red star, " * 20) == encoder.segments("a red star, " * 20)
    square = np.zeros((40, 40, 3), np.uint8)
    ours, theirs = onnx.patches(square), encoder.patches(square)
    assert ours is not None
    assert theirs is not None
    np.testing.assert_array_equal(ours.vectors, theirs.vectors)


def forget_8_bits(cache: Path) -> None:
    for folder in in_8_bits(cache):
        shutil.rmtree(folder)


def in_8_bits(cache: Path) -> list[Path]:
    return sorted(path.parent for path in cache.glob("*/model.onnx") if not (path.parent / "model.onnx.data").exists())


def test_8_bits_are_another_precision_whose_drift_is_told(
    encoder: Encoder, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    single = accelerated(encoder, cache, threads=1)
    forget_8_bits(cache)
    with caplog.at_level(logging.INFO, "indexer.onnx_encoder"):
        small = accelerated(encoder, cache, threads=1, precision="int8")
    assert isinstance(small, OnnxEncoder)
    assert isinstance(single, OnnxEncoder)
    assert small.spec == encoder.spec.model_copy(update={"precision": "int8"})
    assert str(small.image_drift) in caplog.text
    assert str(small.text_drift) in caplog.text
    assert single.image_drift.worst > 0.99999
    for drift in (small.image_drift, small.text_drift):
        assert 0.98 < drift.worst <= drift.mean < 0.999999
    pixels = pictures(encoder, 5)
    cosines = (small.encode_images(pixels) * encoder.encode_images(pixels)).sum(axis=1)
    assert 0.98 < cosines.min() < 0.999999


def test_the_demo_model_finds_the_same_by_either(tmp_path: Path) -> None:
    encoder = load_encoder(EncoderName(model=DEMO), device="cpu", threads=1)
    onnx = accelerated(encoder, tmp_path, threads=1)
    pixels = pictures(encoder, 20)
    np.testing.assert_allclose(onnx.encode_images(pixels), encoder.encode_images(pixels), atol=1e-5)
    np.testing.assert_allclose(onnx.encode_texts(TEXTS), encoder.encode_texts(TEXTS), atol=1e-5)


# The cache


def test_what_was_exported_is_not_exported_again(encoder: Encoder, cache: Path) -> None:
    before = written(cache)
    accelerated(encoder, cache, threads=1)
    accelerated(encoder, cache, threads=1, precision="int8")
    assert written(cache) == before
    assert len(list(cache.iterdir())) == 4


def test_another_text_half_leaves_the_exported_image_half_in_use(tmp_path: Path, cache: Path) -> None:
    other = new_model(0)
    with torch.no_grad():
        other.text_projection.add_(0.1)
    encoder = load_encoder(EncoderName(model=save_model(tmp_path / "other", other)), device="cpu", threads=1)
    before = written(cache)
    onnx = accelerated(encoder, cache, threads=1)
    after = written(cache)
    assert {name: after[name] for name in before} == before
    assert len(list(cache.iterdir())) == 5
    np.testing.assert_allclose(onnx.encode_texts(TEXTS), encoder.encode_texts(TEXTS), atol=1e-5)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("name", ["model.onnx", "record.json"])
def test_a_damaged_entry_is_made_again(encoder: Encoder, cache: Path, name: str, damage: str) -> None:
    pixels = pictures(encoder, 3)
    expected = accelerated(encoder, cache, threads=1, precision="int8").encode_images(pixels)
    for folder in in_8_bits(cache):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 0x80
        (folder / name).write_bytes(data if damage == "flip" else data[: len(data) // 2])
        if damage == "remove":
            (folder / name).unlink()
    found = accelerated(encoder, cache, threads=1, precision="int8").encode_images(pixels)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    before = written(cache)
    accelerated(encoder, cache, threads=1, precision="int8")
    assert written(cache) == before
    assert len(list(cache.iterdir())) == 4


def test_a_tower_that_is_not_the_same_as_in_torch_is_refused_and_not_kept(tmp_path: Path, model: EncoderName) -> None:
    other = load_encoder(model, device="cpu", threads=1)
    assert isinstance(other, OpenClipEncoder)
    other._std = other._std * 2  # torch now normalises in another way than the encoder says, and than is exported
    with pytest.raises(
        EncoderError, match=r"image tower of .* the cosine of their embeddings is 0\.\d{6}, and must be"
    ):
        accelerated(other, tmp_path, threads=1)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_a_file_is_named(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(EncoderError, match=f"cannot be written into {tmp_path / 'cache'}"):
        accelerated(encoder, tmp_path / "cache", threads=1)


def test_half_precision_is_not_exported(model: EncoderName, tmp_path: Path) -> None:
    half = load_encoder(model, device="cpu", threads=1, precision="bf16")
    with pytest.raises(EncoderError, match="Only a torch encoder in fp32 can be exported"):
        accelerated(half, tmp_path, threads=1)


def test_an_entry_that_another_process_made_meanwhile_stays_and_ours_is_dropped(cache: Path, tmp_path: Path) -> None:
    (theirs, _) = in_8_bits(cache)
    before = written(cache)
    ours = Path(shutil.copytree(theirs, tmp_path / "ours"))
    _publish(ours, theirs, tmp_path)
    assert written(cache) == before
    (theirs / "model.onnx").write_bytes(b"")
    _publish(ours, theirs, tmp_path)
    assert written(cache).keys() == before.keys()
    assert (theirs / "model.onnx").stat().st_size > 0
