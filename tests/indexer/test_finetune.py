"""Whole runs of each recipe on a small model: what they change, what they write, what they refuse."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.encoder import Encoder, EncoderName, load_encoder
from indexer.errors import BuildError, TrainingError
from indexer.finetune.export import WEIGHTS
from indexer.finetune.recipes import Recipe
from indexer.samples import Samples, load_samples
from indexer.torch_runtime import torch
from tests import runs
from tests.models import CONFIG, new_model, save_model
from tests.pictures import POLICY

pytestmark = pytest.mark.usefixtures("one_thread")

CHANGES = {  # image half, text half
    Recipe.CLIP: (True, True),
    Recipe.GPR_FT: (True, False),
    Recipe.RE_A: (False, True),
    Recipe.TWO_SFT: (True, True),
    Recipe.MCIP: (True, False),
    Recipe.MCIP_RE_A: (True, True),
}


@pytest.fixture(scope="module")
def tuned(samples: Samples, model: EncoderName, tmp_path_factory: pytest.TempPathFactory) -> dict[Recipe, Path]:
    """Make a run of each recipe."""
    folder = tmp_path_factory.mktemp("runs")
    for recipe in Recipe:
        runs.tune(runs.config(recipe), model, samples, folder / recipe)
    return {recipe: folder / recipe for recipe in Recipe}


@pytest.fixture(scope="module")
def base() -> dict[str, np.ndarray[Any, Any]]:
    """Return the weights that every run starts from."""
    return {name: value.numpy() for name, value in new_model(0).state_dict().items()}


def named(out: Path) -> EncoderName:
    return EncoderName(model=f"local-dir:{out / 'model'}")


def loaded(out: Path) -> Encoder:
    return load_encoder(named(out), device="cpu", threads=1)


@pytest.mark.parametrize("recipe", Recipe)
def test_a_recipe_changes_all_of_what_it_trains_and_not_a_bit_of_the_rest(
    tuned: dict[Recipe, Path], base: dict[str, np.ndarray[Any, Any]], encoder: Encoder, recipe: Recipe
) -> None:
    image, text = CHANGES[recipe]
    equal = runs.same(runs.weights(tuned[recipe]), base)
    visual = {name for name in base if name.startswith("visual.")}
    assert equal == (set() if image else visual) | (set() if text else base.keys() - visual)
    spec = loaded(tuned[recipe]).spec
    assert (spec.image != encoder.spec.image, spec.text != encoder.spec.text) == (image, text)


@pytest.mark.parametrize("recipe", Recipe)
def test_embeddings_of_a_half_that_a_recipe_locks_are_the_same_bit_for_bit(
    tuned: dict[Recipe, Path], encoder: Encoder, samples: Samples, recipe: Recipe
) -> None:
    image, text = CHANGES[recipe]
    ours = loaded(tuned[recipe])
    pixels = [encoder.preprocess(samples.image(i)) for i in range(0, 24, 5)]
    again = [ours.preprocess(samples.image(i)) for i in range(0, 24, 5)]
    assert np.array_equal(np.stack(again), np.stack(pixels))
    texts = ["a red picture", "two green ships"]
    assert np.array_equal(ours.encode_images(again), encoder.encode_images(pixels)) != image
    assert np.array_equal(ours.encode_texts(texts), encoder.encode_texts(texts)) != text


@pytest.mark.parametrize(("whole", "first"), [(Recipe.TWO_SFT, Recipe.GPR_FT), (Recipe.MCIP_RE_A, Recipe.MCIP)])
def test_a_recipe_of_two_stages_is_one_after_the_other(
    tuned: dict[Recipe, Path], samples: Samples, tmp_path: Path, whole: Recipe, first: Recipe
) -> None:
    runs.tune(runs.config(Recipe.RE_A), named(tuned[first]), samples, tmp_path / "second")
    assert runs.weights(tuned[whole]).keys() == runs.same(runs.weights(tmp_path / "second"), runs.weights(tuned[whole]))
    assert runs.losses(tuned[whole]) == runs.losses(tuned[first]) + runs.losses(tmp_path / "second")


@pytest.mark.parametrize(
    ("layers", "trained"),
    [
        (1, {"text_projection", "logit_scale"}),
        (2, {"text_projection", "logit_scale", "ln_final", "transformer"}),
        (3, {"text_projection", "logit_scale", "ln_final", "transformer", "token_embedding", "positional_embedding"}),
    ],
)
def test_realignment_trains_as_many_layers_from_the_end_of_the_text_tower_as_asked(
    samples: Samples,
    model: EncoderName,
    base: dict[str, np.ndarray[Any, Any]],
    tmp_path: Path,
    layers: int,
    trained: set[str],
) -> None:
    runs.tune(runs.config(Recipe.RE_A, text_layers=layers), model, samples, tmp_path / "run")
    changed = base.keys() - runs.same(runs.weights(tmp_path / "run"), base)
    assert {name.split(".")[0] for name in changed} == trained


@pytest.mark.parametrize("recipe", [Recipe.GPR_FT, Recipe.MCIP, Recipe.RE_A])
def test_averaged_weights_leave_a_locked_half_as_it_is(
    samples: Samples, model: EncoderName, base: dict[str, np.ndarray[Any, Any]], tmp_path: Path, recipe: Recipe
) -> None:
    runs.tune(runs.config(recipe, ema=0.7, wise=0.3), model, samples, tmp_path / "run")
    image, _ = CHANGES[recipe]
    visual = {name for name in base if name.startswith("visual.")}
    assert runs.same(runs.weights(tmp_path / "run"), base) == (base.keys() - visual if image else visual)


@pytest.mark.parametrize("recipe", [Recipe.MCIP, Recipe.RE_A, Recipe.CLIP])
def test_wise_ft_lies_between_the_base_and_the_tuned_model(
    tuned: dict[Recipe, Path],
    samples: Samples,
    model: EncoderName,
    base: dict[str, np.ndarray[Any, Any]],
    tmp_path: Path,
    recipe: Recipe,
) -> None:
    for part in (0.0, 0.3, 0.8):
        runs.tune(runs.config(recipe, wise=part), model, samples, tmp_path / str(part))
    ends = runs.weights(tuned[recipe])
    for part in (0.3, 0.8):
        found = runs.weights(tmp_path / str(part))
        for name, value in base.items():
            wanted = (1 - part) * value.astype(np.float64) + part * ends[name].astype(np.float64)
            np.testing.assert_allclose(found[name], wanted, atol=1e-6)
    assert runs.same(runs.weights(tmp_path / "0.0"), base) == base.keys()


def test_with_wise_ft_the_text_tower_is_aligned_to_the_mixed_image_tower(
    samples: Samples, model: EncoderName, tmp_path: Path
) -> None:
    runs.tune(runs.config(Recipe.TWO_SFT, wise=0.4), model, samples, tmp_path / "both")
    mixed = runs.tune(runs.config(Recipe.GPR_FT, wise=0.4), model, samples, tmp_path / "first")
    assert mixed is not None
    runs.tune(runs.config(Recipe.RE_A, wise=0.4), mixed, samples, tmp_path / "then")
    both = runs.weights(tmp_path / "both")
    assert runs.same(both, runs.weights(tmp_path / "then")) == both.keys()


@pytest.mark.parametrize("recipe", [Recipe.GPR_FT, Recipe.MCIP, Recipe.RE_A])
def test_a_temperature_beyond_its_bound_is_changed_only_where_it_is_trained(
    samples: Samples, tmp_path: Path, recipe: Recipe
) -> None:
    hot = new_model(0)
    with torch.no_grad():
        hot.logit_scale.fill_(4.8)
    name = EncoderName(model=save_model(tmp_path / "hot", hot))
    runs.tune(runs.config(recipe, schedule={"epochs": 1}), name, samples, tmp_path / "run")
    found = float(runs.weights(tmp_path / "run")["logit_scale"])
    assert found <= math.log(100) + 1e-6 if recipe is Recipe.RE_A else found == pytest.approx(4.8)
    text = load_encoder(name, device="cpu", threads=1).spec.text
    assert (loaded(tmp_path / "run").spec.text == text) == (recipe is not Recipe.RE_A)


def test_an_image_tower_of_timm_can_be_tuned(samples: Samples, tmp_path: Path) -> None:
    vision = {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32}
    config = {**CONFIG, "vision_cfg": vision}
    name = EncoderName(model=save_model(tmp_path / "timm", new_model(0, config), config))
    runs.tune(runs.config(Recipe.MCIP_RE_A), name, samples, tmp_path / "run")
    found = [each["arc"] for each in runs.losses(tmp_path / "run") if each["stage"] == "captions"]
    assert np.mean(found[-3:]) < np.mean(found[:3])
    assert loaded(tmp_path / "run").spec.dim == 16


def test_a_run_says_what_it_was(tuned: dict[Recipe, Path], encoder: Encoder) -> None:
    out = tuned[Recipe.MCIP_RE_A]
    assert not list(out.glob("checkpoint*"))
    said = json.loads((out / "config.json").read_text())
    assert said["config"] == runs.config(Recipe.MCIP_RE_A).model_dump(mode="json")
    assert (said["base"]["image"], said["base"]["text"]) == (encoder.spec.image, encoder.spec.text)
    assert said["data"]["samples"]["count"] == 24
    assert said["versions"]["torch"] == torch.__version__
    found = runs.losses(out)
    assert [(each["stage"], each["step"]) for each in found] == [
        (stage, step) for stage in ("captions", "realign") for step in range(9)
    ]
    for each in found[:9]:
        assert each["loss"] == pytest.approx(0.75 * each["arc"] + 0.25 * each["captions"])
    plot = (out / "losses.svg").read_text()
    assert plot.startswith("<svg ")
    assert "captions: arc" in plot


def test_the_same_seed_tunes_the_same_weights_and_another_others(
    tuned: dict[Recipe, Path], samples: Samples, model: EncoderName, tmp_path: Path
) -> None:
    for seed in (0, 1):
        runs.tune(runs.config(Recipe.CLIP, seed=seed), model, samples, tmp_path / str(seed))
    wanted = (tuned[Recipe.CLIP] / "model" / WEIGHTS).read_bytes()
    assert (tmp_path / "0" / "model" / WEIGHTS).read_bytes() == wanted
    assert (tmp_path / "1" / "model" / WEIGHTS).read_bytes() != wanted


def test_classes_take_turns_where_asked(samples: Samples, model: EncoderName, tmp_path: Path) -> None:
    uneven = samples.relabelled(["rare"] * 3 + ["common"] * 21)
    for balanced in (True, False):
        runs.tune(runs.config(Recipe.GPR_FT, balanced=balanced), model, uneven, tmp_path / str(balanced))
    even, plain = ([each["loss"] for each in runs.losses(tmp_path / name)] for name in ("True", "False"))
    assert not set(even) & set(plain)


def test_weights_may_be_exported_in_half_precision(
    tuned: dict[Recipe, Path], samples: Samples, model: EncoderName, tmp_path: Path
) -> None:
    runs.tune(runs.config(Recipe.MCIP, half=True), model, samples, tmp_path / "half")
    whole = runs.weights(tuned[Recipe.MCIP])
    for name, value in runs.weights(tmp_path / "half").items():
        assert value.tobytes() == whole[name].astype(np.float16).tobytes()
    assert loaded(tmp_path / "half").encode_texts(["x"]).shape == (1, 16)


@pytest.mark.parametrize(
    ("recipe", "lacks", "said"),
    [
        (Recipe.GPR_FT, "labels", "two classes or more; there are 0 in 24 pictures. Give labels (--labels"),
        (Recipe.MCIP, "labels", "two classes or more; there are 0 in 24 pictures. Give labels (--labels"),
        (Recipe.GPR_FT, "classes", "two classes or more; there are 1 in 24 pictures"),
        (Recipe.MCIP, "captions", "needs captions, and no picture has one. Give a table"),
        (Recipe.RE_A, "captions", "needs captions, and no picture has one. Give a table"),
        (Recipe.CLIP, "captions", "python -m indexer caption"),
    ],
)
def test_data_that_lack_what_a_recipe_needs_are_refused_with_advice(
    samples: Samples, model: EncoderName, tmp_path: Path, recipe: Recipe, lacks: str, said: str
) -> None:
    poor = {
        "labels": samples.relabelled([None] * 24),
        "classes": samples.relabelled(["same"] * 24),
        "captions": samples.recaptioned([()] * 24),
    }[lacks]
    with pytest.raises(TrainingError) as refused:
        runs.tune(runs.config(recipe), model, poor, tmp_path / "run")
    assert said in str(refused.value)


def test_pictures_without_label_or_caption_cost_themselves(
    samples: Samples, model: EncoderName, tmp_path: Path
) -> None:
    labels = [None if i % 5 == 0 else sample.label for i, sample in enumerate(samples)]
    captions = [() if i % 3 == 0 else sample.captions for i, sample in enumerate(samples)]
    some = samples.relabelled(labels).recaptioned(captions)
    runs.tune(runs.config(Recipe.MCIP_RE_A, flatness=0.1), model, some, tmp_path / "run")
    found = runs.losses(tmp_path / "run")
    # 19 pictures have a label and 16 have a caption: two batches of 8 each.
    assert [each["stage"] for each in found] == ["captions"] * 6 + ["realign"] * 6
    assert np.isfinite([each["loss"] for each in found]).all()


@pytest.mark.parametrize("recipe", [Recipe.CLIP, Recipe.MCIP_RE_A])
def test_broken_pictures_cost_themselves(table: Path, model: EncoderName, tmp_path: Path, recipe: Recipe) -> None:
    shutil.copytree(table.parent, tmp_path / "some")
    (tmp_path / "some" / "red" / "3.png").write_bytes(b"no picture")
    (tmp_path / "some" / "blue" / "7.png").write_bytes((table.parent / "blue" / "7.png").read_bytes()[:200])
    (tmp_path / "some" / "green" / "0.png").unlink()
    runs.tune(runs.config(recipe), model, load_samples(tmp_path / "some" / "table.jsonl", None, POLICY), tmp_path / "r")
    found = runs.losses(tmp_path / "r")
    assert len(found) == (9 if recipe is Recipe.CLIP else 9 + 6)  # Re-A has the embeddings of 21 pictures
    assert np.isfinite([each["loss"] for each in found]).all()


@pytest.mark.parametrize(
    ("recipe", "error", "said"),
    [
        (Recipe.GPR_FT, TrainingError, "None of the training pictures can be decoded"),
        (Recipe.RE_A, BuildError, "None of 24 pictures can be used"),
    ],
)
def test_where_every_picture_is_broken_the_run_says_so(
    table: Path, model: EncoderName, tmp_path: Path, recipe: Recipe, error: type[Exception], said: str
) -> None:
    shutil.copytree(table.parent, tmp_path / "none")
    for path in (tmp_path / "none").glob("*/*.png"):
        path.write_bytes(b"no picture")
    broken = load_samples(tmp_path / "none" / "table.jsonl", None, POLICY)
    with pytest.raises(error, match=said):
        runs.tune(runs.config(recipe), model, broken, tmp_path / "run")
