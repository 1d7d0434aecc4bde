import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from indexer.encoder import DEMO_FOLDER, EncoderName, load_encoder
from indexer.finetune import evaluate as measure
from indexer.finetune.card import write_card
from indexer.finetune.evaluate import Crops, Figures, evaluate
from indexer.finetune.export import export
from indexer.finetune.train import TrainConfig, Trained, _batches, _Pictures, train
from indexer.torch_runtime import open_clip, torch

MICRO = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CONFIG = TrainConfig(
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
def micro(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    out = tmp_path_factory.mktemp("micro") / "model"
    return train(CONFIG, out), out


@pytest.fixture(scope="module")
def shipped() -> Figures:
    return evaluate(DEMO_FOLDER)


def test_the_loss_falls(micro: tuple[Trained, Path]) -> None:
    trained, _ = micro
    assert trained.steps == 36
    assert trained.loss < 0.85 * trained.first_loss


def test_the_same_seed_trains_the_same_weights(micro: tuple[Trained, Path], tmp_path: Path) -> None:
    train(CONFIG, tmp_path)
    name = "open_clip_model.safetensors"
    assert (tmp_path / name).read_bytes() == (micro[1] / name).read_bytes()


def test_words_that_were_not_trained_are_zero(micro: tuple[Trained, Path]) -> None:
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{micro[1]}")
    table = model.token_embedding.weight
    star, zebra = open_clip.SimpleTokenizer()(["star", "zebra"])[:, 1].tolist()
    assert table[star].abs().sum() > 0
    assert table[zebra].abs().sum() == 0


def test_an_exported_model_gives_the_same_embeddings_when_open_clip_loads_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.CLIP(**MICRO).eval()
    export(model, MICRO, tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
    inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        image = model.encode_image(inputs, normalize=True).numpy()
        text = model.encode_text(open_clip.SimpleTokenizer(context_length=24)(["a red star"]), normalize=True).numpy()
    loaded = load_encoder(EncoderName(model=f"local-dir:{tmp_path}"), device="cpu", threads=1)
    # Half precision has 11 bits.
    found = loaded.encode_images([loaded.preprocess(Image.fromarray(pixels))])
    np.testing.assert_allclose(found, image, atol=4e-3)
    np.testing.assert_allclose(loaded.encode_texts(["a red star"]), text, atol=4e-3)


def test_an_epoch_has_every_picture_once_and_a_batch_no_pair_twice() -> None:
    batches = epoch(by_colour=0.5)
    assert sorted(np.concatenate(batches).tolist()) == list(range(40))
    assert [len(set((batch % 10).tolist())) for batch in batches] == [5] * 8


def test_pictures_of_one_colour_or_kind_stand_together_as_often_as_asked() -> None:
    assert {len(set((batch % 2).tolist())) for batch in epoch(by_colour=1.0)} == {1}
    assert {len(set((batch % 2).tolist())) for batch in epoch(by_colour=0.0)} != {1}
    assert {len(set((batch % 5).tolist())) for batch in epoch(by_colour=0.0, by_kind=1.0, batch=2)} == {1}


def epoch(by_colour: float, by_kind: float = 0.0, batch: int = 5) -> list[npt.NDArray[np.int64]]:
    """The batches of 40 pictures: of 10 pairs in turn, of colours 0 and 1 and kinds 0 to 4 in turn."""
    numbers = np.arange(40)
    pictures = _Pictures(np.zeros((40, 1, 1, 3), np.uint8), [()] * 40, numbers % 2, numbers % 5, pairs=10)
    config = TrainConfig(pictures=40, epochs=1, batch=batch, by_colour=by_colour, by_kind=by_kind)
    return list(_batches(pictures, config, np.random.default_rng(0)))


def test_average_precision_counts_the_right_ones_before_each_right_one() -> None:
    similarities = np.array([[0, 3, 2, 1], [3, 0, 2, 1], [1, 3, 0, 2], [3, 2, 1, 0]], np.float32)
    np.fill_diagonal(similarities, -np.inf)
    labels = np.array(["a", "b", "a", "b"])
    # The only right one comes 2nd, 3rd, 3rd, 2nd.
    assert measure._retrieval(similarities, labels) == pytest.approx(((1 / 2 + 1 / 3 + 1 / 3 + 1 / 2) / 4, 0.0))


def test_nearer_neighbours_have_more_weight_in_the_vote() -> None:
    similarities = np.array([[-np.inf, 0.9, 0.5, 0.5]] * 4, np.float32)
    # exp(9) for "a" against 2 exp(5) for "b", each time; two of the four are "a".
    assert measure._accuracy(similarities, np.array(["a", "a", "b", "b"])) == 0.5


def test_a_crop_keeps_four_fifths_of_the_area() -> None:
    image = Image.new("RGB", (200, 100))
    image.putpixel((199, 99), (255, 0, 0))
    crop = measure._crop(image, 1, 1)
    assert crop.size == (179, 89)
    assert crop.getpixel((178, 88)) == (255, 0, 0)


def test_the_card_tells_the_command_and_the_figures(micro: tuple[Trained, Path], tmp_path: Path) -> None:
    trained, out = micro
    (tmp_path / "open_clip_model.safetensors").write_bytes((out / "open_clip_model.safetensors").read_bytes())
    figures = Figures(0.987, 0.8, 0.912, 0.345, 0.567, Crops(photos=1650, asked=50, centred=49, anywhere=48))
    write_card(tmp_path, replace(trained, cpu_seconds=1234.5), figures)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "python -m indexer train --out DIR --seed 5 --pictures 48 --epochs 12" in card
    for figure in ("0.987", "0.912", "0.345", "0.567", "49 of 50", "48 of 50", "1,650", "1,234 s"):
        assert figure in card


def test_the_shipped_model_answers_the_fixed_queries(shipped: Figures) -> None:
    assert shipped.precision >= 0.9


def test_the_shipped_card_states_what_is_measured(shipped: Figures) -> None:
    card = (DEMO_FOLDER / "README.md").read_text(encoding="utf-8")
    stated = [float(figure) for figure in re.findall(r"\| (\d\.\d+) \|$", card, re.MULTILINE)]
    measured = [
        shipped.precision,
        shipped.worst_precision,
        shipped.accuracy,
        shipped.instance_map,
        shipped.instance_recall,
    ]
    assert stated[-5:] == pytest.approx(measured, abs=0.01)


def test_the_shipped_weights_take_less_than_20_megabytes() -> None:
    assert (DEMO_FOLDER / "open_clip_model.safetensors").stat().st_size < 20_000_000
    assert set(json.loads((DEMO_FOLDER / "open_clip_config.json").read_text())) == {"model_cfg", "preprocess_cfg"}
