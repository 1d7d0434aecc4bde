"""Training of the demo model's base, on a model small enough to be trained in seconds."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from indexer.encoder import EncoderName, load_encoder
from indexer.finetune.export import WEIGHTS, export
from indexer.finetune.pretrain import PREPROCESS, PretrainConfig, Pretrained, _batches, _Pictures, pretrain
from indexer.torch_runtime import open_clip, torch

MICRO = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CONFIG = PretrainConfig(
    seed=5,
    pictures=48,
    epochs=12,
    batch=16,
    seen_twice=4,
    learning_rate=3e-3,
    warmup=5,
    by_colour=0,
    by_kind=0,
    model=MICRO,
)


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pretrained, Path]:
    out = tmp_path_factory.mktemp("micro") / "model"
    return pretrain(CONFIG, out), out


def test_the_loss_falls(micro: tuple[Pretrained, Path]) -> None:
    trained, _ = micro
    assert trained.steps == 36
    assert trained.loss < 0.85 * trained.first_loss


def test_the_same_seed_trains_the_same_weights(micro: tuple[Pretrained, Path], tmp_path: Path) -> None:
    pretrain(CONFIG, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == (micro[1] / WEIGHTS).read_bytes()


def test_words_that_were_not_trained_are_zero(micro: tuple[Pretrained, Path]) -> None:
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{micro[1]}")
    table = model.token_embedding.weight
    star, zebra = open_clip.SimpleTokenizer()(["star", "zebra"])[:, 1].tolist()
    assert table[star].abs().sum() > 0
    assert table[zebra].abs().sum() == 0


@pytest.mark.parametrize(("half", "tolerance"), [(False, 1e-6), (True, 4e-3)])  # half precision has 11 bits
def test_an_exported_model_gives_the_same_embeddings_when_open_clip_loads_it(
    tmp_path: Path, half: bool, tolerance: float
) -> None:
    torch.manual_seed(0)
    model = open_clip.CLIP(**MICRO).eval()
    export(model, MICRO, PREPROCESS, tmp_path, half=half)
    pixels = np.random.default_rng(0).integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
    inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        image = model.encode_image(inputs, normalize=True).numpy()
        text = model.encode_text(open_clip.SimpleTokenizer(context_length=24)(["a red star"]), normalize=True).numpy()
    loaded = load_encoder(EncoderName(model=f"local-dir:{tmp_path}"), device="cpu", threads=1)
    found = loaded.encode_images([loaded.preprocess(Image.fromarray(pixels))])
    np.testing.assert_allclose(found, image, atol=tolerance)
    np.testing.assert_allclose(loaded.encode_texts(["a red star"]), text, atol=tolerance)


def test_an_epoch_has_every_picture_once_and_a_batch_no_pair_twice() -> None:
    batches = epoch(by_colour=0.5)
    assert sorted(np.concatenate(batches).tolist()) == list(range(40))
    assert [len(set((batch % 10).tolist())) for batch in batches] == [5] * 8


def test_pictures_of_one_colour_or_kind_stand_together_as_often_as_asked() -> None:
    assert {len(set((batch % 2).tolist())) for batch in epoch(by_colour=1.0)} == {1}
    assert {len(set((batch % 2).tolist())) for batch in epoch(by_colour=0.0)} != {1}
    assert {len(set((batch % 5).tolist())) for batch in epoch(by_colour=0.0, by_kind=1.0, batch=2)} == {1}


def epoch(by_colour: float, by_kind: float = 0.0, batch: int = 5) -> list[npt.NDArray[np.int64]]:
    """Return the batches of 40 pictures: of 10 pairs in turn, of colours 0 and 1 and kinds 0 to 4 in turn."""
    numbers = np.arange(40)
    pictures = _Pictures(np.zeros((40, 1, 1, 3), np.uint8), [()] * 40, numbers % 2, numbers % 5, pairs=10)
    config = PretrainConfig(pictures=40, epochs=1, batch=batch, by_colour=by_colour, by_kind=by_kind)
    return list(_batches(pictures, config, np.random.default_rng(0)))
