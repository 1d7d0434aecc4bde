"""Which encoder a build takes."""

from pathlib import Path

import numpy as np

from indexer.build_command import _encoders, load_for_build
from indexer.encoder import Encoder, EncoderName
from indexer.onnx_encoder import OnnxEncoder
from indexer.settings import Settings


def test_a_large_build_on_a_cpu_takes_onnx_runtime_and_a_small_one_what_is_loaded(
    encoder: Encoder, tmp_path: Path
) -> None:
    settings = Settings(device="cpu", cache=tmp_path, threads=1)
    assert _encoders(settings, encoder, 3_999) == [encoder]
    assert _encoders(settings.model_copy(update={"backend": "torch"}), encoder, 4_000) == [encoder]
    (found,) = _encoders(settings, encoder, 4_000)
    assert isinstance(found, OnnxEncoder)
    assert found.spec == encoder.spec


def test_the_backend_may_be_named(model: EncoderName, encoder: Encoder, tmp_path: Path) -> None:
    pixels = [np.full((3, 32, 32), shade, np.uint8) for shade in (0, 90, 200)]
    settings = Settings(device="cpu", cache=tmp_path, backend="onnx")
    found = load_for_build(settings, model, threads=1)
    assert isinstance(found, OnnxEncoder)
    assert _encoders(settings, found, 10_000) == [found]
    np.testing.assert_allclose(found.encode_images(pixels), encoder.encode_images(pixels), atol=1e-5)
    rough = load_for_build(settings.model_copy(update={"backend": "onnx-int8"}), model, threads=1)
    assert rough.spec.precision == "int8"
