"""Encoders: loading, identity, and what they make of pictures and texts."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from indexer.encoder import Encoder, EncoderName, EncoderSpec, Precision, load_encoder
from indexer.errors import EncoderError
from indexer.torch_runtime import devices, open_clip, torch
from tests.models import CONFIG, new_model, save_model

NARROW = "ViT-S-32-alt"  # a small architecture that open_clip knows by name


def load(model: str, pretrained: str | None = None) -> Encoder:
    return load_encoder(EncoderName(model=model, pretrained=pretrained), device="cpu", threads=1)


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8))


def test_embeddings_are_those_of_open_clip_itself(model: EncoderName, encoder: Encoder) -> None:
    reference, _, transform = open_clip.create_model_and_transforms(model.model)
    reference.eval()
    tokens = open_clip.get_tokenizer(model.model)(["a red star", "two birds"])
    # Of the input size, so that nothing is resized: that is what test_preprocessing.py is about.
    pictures = [picture(0, (32, 32)), picture(1, (32, 90))]
    with torch.no_grad():
        images = reference.encode_image(torch.stack([transform(each) for each in pictures])).numpy()
        texts = reference.encode_text(tokens).numpy()
    ours = encoder.encode_images([encoder.preprocess(each) for each in pictures])
    np.testing.assert_allclose(ours, images / np.linalg.norm(images, axis=1, keepdims=True), atol=1e-6)
    ours = encoder.encode_texts(["a red star", "two birds"])
    np.testing.assert_allclose(ours, texts / np.linalg.norm(texts, axis=1, keepdims=True), atol=1e-6)


def test_nothing_encodes_to_nothing(encoder: Encoder) -> None:
    assert encoder.encode_images([]).shape == (0, 16)
    assert encoder.encode_texts([]).shape == (0, 16)
    assert encoder.count_tokens([]) == 0


def test_tokens_are_counted_with_start_and_end(encoder: Encoder) -> None:
    assert encoder.count_tokens(["a red star", "star"]) == (3 + 2) + (1 + 2)


def test_the_logit_scale_is_that_of_an_untrained_clip(encoder: Encoder) -> None:
    assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)


def test_pixels_are_open_clips_own_before_it_normalises(model: EncoderName, encoder: Encoder) -> None:
    _, _, transform = open_clip.create_model_and_transforms(model.model)
    long = picture(2, (20, 240))
    expected = transform(long).numpy().astype(np.float64) * 0.25 + 0.5
    pixels = encoder.preprocess(long)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - expected * 255).max() < 1.01


def test_many_pictures_and_texts_are_encoded_as_each_by_itself(encoder: Encoder) -> None:
    pixels = [encoder.preprocess(picture(seed)) for seed in range(37)]
    texts = [f"{number} birds" for number in range(37)]
    alone = np.concatenate([encoder.encode_images([each]) for each in pixels])
    np.testing.assert_allclose(encoder.encode_images(pixels), alone, atol=1e-6)
    alone = np.concatenate([encoder.encode_texts([each]) for each in texts])
    np.testing.assert_allclose(encoder.encode_texts(texts), alone, atol=1e-6)


def test_several_threads_may_encode_at_once(encoder: Encoder) -> None:
    pixels = [encoder.preprocess(picture(seed)) for seed in range(20)]
    alone = encoder.encode_images(pixels)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(encoder.encode_images, [pixels] * 8):
            np.testing.assert_allclose(found, alone, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_another_precision_of_the_same_halves(
    model: EncoderName, encoder: Encoder, precision: Precision
) -> None:
    half = load_encoder(model, device="cpu", threads=1, precision=precision)
    assert half.spec == encoder.spec.model_copy(update={"precision": precision})
    assert half.logit_scale == pytest.approx(encoder.logit_scale, rel=0.01)
    pixels = [encoder.preprocess(picture(seed)) for seed in range(20)]
    texts = ["a red star", "two birds", ""]
    for found, exact in (
        (half.encode_images(pixels), encoder.encode_images(pixels)),
        (half.encode_texts(texts), encoder.encode_texts(texts)),
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        cosines = (found * exact).sum(axis=1)
        assert cosines.min() > 0.999
        assert (found != exact).any()


def test_a_manifest_written_before_there_were_precisions_means_single(encoder: Encoder) -> None:
    old = encoder.spec.model_dump(exclude={"precision"})
    assert EncoderSpec.model_validate(old).precision == "fp32"


@pytest.mark.parametrize("device", ["cuda:97", "abacus"])
def test_a_device_that_is_not_there_is_named(model: EncoderName, device: str) -> None:
    with pytest.raises(EncoderError, match=f"^The device '{device}' cannot be used: "):
        load_encoder(model, device=device, threads=1)


def test_torch_leaves_8_bits_to_onnx_runtime(model: EncoderName) -> None:
    with pytest.raises(EncoderError, match="torch encodes in fp32, bf16, fp16; int8 is ONNX Runtime's"):
        load_encoder(model, device="cpu", threads=1, precision="int8")


def test_every_device_can_be_loaded_onto(model: EncoderName) -> None:
    assert len(devices()) == (torch.cuda.device_count() or 1)
    for device in devices():
        assert load_encoder(model, device=device, threads=1).encode_texts(["a star"]).shape == (1, 16)


def test_the_same_weights_have_the_same_fingerprint_wherever_they_lie(tmp_path: Path) -> None:
    one = load(save_model(tmp_path / "one", new_model(3))).spec
    two = load(save_model(tmp_path / "two", new_model(3))).spec
    assert (one.image, one.text) == (two.image, two.text)


def test_another_text_tower_changes_only_the_text_half(tmp_path: Path) -> None:
    model = new_model(3)
    before = load(save_model(tmp_path / "before", model)).spec
    with torch.no_grad():
        model.text_projection.add_(0.1)
    after = load(save_model(tmp_path / "after", model)).spec
    assert (after.image, after.text == before.text) == (before.image, False)


def test_another_image_projector_changes_only_the_image_half(tmp_path: Path) -> None:
    model = new_model(3)
    before = load(save_model(tmp_path / "before", model)).spec
    with torch.no_grad():
        model.visual.proj.add_(0.1)
    after = load(save_model(tmp_path / "after", model)).spec
    assert (after.text, after.image == before.image) == (before.text, False)


def test_another_preprocessing_changes_only_the_image_half(tmp_path: Path) -> None:
    before = load(save_model(tmp_path / "before", new_model(3))).spec
    after_name = save_model(tmp_path / "after", new_model(3))
    config = tmp_path / "after" / "open_clip_config.json"
    config.write_text(config.read_text().replace("bicubic", "bilinear"))
    after = load(after_name).spec
    assert (after.text, after.image == before.image) == (before.text, False)


def test_a_longer_context_changes_only_the_text_half(tmp_path: Path) -> None:
    longer = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "context_length": 20}}
    before = load(save_model(tmp_path / "before", new_model(3))).spec
    model = new_model(3, longer)
    model.visual.load_state_dict(new_model(3).visual.state_dict())
    after = load(save_model(tmp_path / "after", model, longer)).spec
    assert (after.image, after.text == before.text) == (before.image, False)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_plain_state_dict_is_loaded_into_a_named_architecture(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(5)
    model = open_clip.create_model(NARROW)
    path = tmp_path / f"weights{suffix}"
    state = model.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    encoder = load(NARROW, str(path))
    with torch.no_grad():
        expected = model.eval().encode_text(open_clip.get_tokenizer(NARROW)(["a cat"]), normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_texts(["a cat"]), expected, atol=1e-6)


def test_a_checkpoint_of_another_architecture_is_refused_with_a_parameter_that_differs(tmp_path: Path) -> None:
    torch.save(new_model(0).state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(EncoderError, match=rf"does not belong to the architecture {NARROW}: \d+ of \d+ parameters"):
        load(NARROW, str(tmp_path / "tiny.pth"))


def test_a_checkpoint_for_another_picture_size_is_refused_rather_than_bent(tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.save(open_clip.create_model(NARROW, force_image_size=192).state_dict(), tmp_path / "192.pth")
    with pytest.raises(EncoderError, match="positional_embedding"):
        load(NARROW, str(tmp_path / "192.pth"))


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "ran"),)  # type: ignore[return-value]

    torch.save({"weights": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(EncoderError):
        load(NARROW, str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("model", "pretrained"),
    [
        ("no-such-architecture", None),
        (NARROW, None),
        (NARROW, "no_such_tag"),
        ("local-dir:/no/such/folder", None),
    ],
)
def test_a_model_that_cannot_be_had_is_named_in_the_error(model: str, pretrained: str | None) -> None:
    with pytest.raises(EncoderError, match=f"The model {model}.* cannot be loaded"):
        load(model, pretrained)
