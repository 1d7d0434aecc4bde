"""Recipes as stages, the settings of the released code, and settings as a user gives them."""

import re
from pathlib import Path

import pytest

from indexer.errors import TrainingError
from indexer.finetune.recipes import Recipe, RunConfig, Stage


def test_each_recipe_has_the_stages_that_the_paper_gives_it() -> None:
    assert {recipe.value: [stage.value for stage in recipe.stages] for recipe in Recipe} == {
        "clip": ["clip"],
        "gpr-ft": ["classes"],
        "re-a": ["realign"],
        "2sft": ["classes", "realign"],
        "mcip": ["captions"],
        "mcip-re-a": ["captions", "realign"],
    }


def test_the_settings_are_those_of_the_released_code() -> None:
    config = RunConfig(recipe=Recipe.MCIP_RE_A)
    assert config.schedule(Stage.CLASSES) == config.schedule(Stage.CAPTIONS)
    assert config.schedule(Stage.CAPTIONS).model_dump() == {
        "epochs": 3,
        "batch": 128,
        "accumulate": 1,
        "learning_rate": 1e-6,
        "floor": 0.1,
        "warmup": 0.0,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.01,
    }
    realign = config.schedule(Stage.REALIGN)
    assert (realign.learning_rate, realign.warmup, realign.floor) == (1e-5, 0.0, 0.0)
    assert (realign.betas, realign.eps, realign.weight_decay) == ((0.9, 0.98), 1e-6, 0.2)
    assert (config.margin, config.scale, config.caption_part, config.proxies) == (0.1, 30.0, 0.25, 100.0)
    assert (config.text_layers, config.most_captions, config.clip_norm) == (16, 40, 1.0)
    assert config.augmentation.model_dump() == {"margin": 1.125, "flip": 0.5, "jitter": 0.4}
    assert (config.ema, config.wise) == (0.0, 1.0)  # the released code averages no weights


def test_plain_clip_has_a_schedule_of_its_own() -> None:
    config = RunConfig.parse(Recipe.CLIP, ["both.epochs=2", "image.epochs=3", "text.epochs=4"])
    assert [config.schedule(stage).epochs for stage in Stage] == [2, 3, 3, 4]


def test_a_setting_that_is_given_leaves_the_others_of_its_group_as_they_were() -> None:
    config = RunConfig.parse(
        Recipe.MCIP,
        ["image.learning_rate=1e-4", "image.batch=64", "balanced=true", "ema=0.99", "augmentation.jitter=0"],
        seed=7,
    )
    default = RunConfig(recipe=Recipe.MCIP)
    assert config == default.model_copy(
        update={
            "seed": 7,
            "balanced": True,
            "ema": 0.99,
            "image": default.image.model_copy(update={"learning_rate": 1e-4, "batch": 64}),
            "augmentation": default.augmentation.model_copy(update={"jitter": 0.0}),
        }
    )


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["image.learning_rate=-1"], "The setting image.learning_rate is not usable"),
        (["image.learning_rate=fast"], "The setting image.learning_rate is not usable"),
        (["image.rate=1"], "The setting image.rate is not usable"),
        (["rate=1"], "The setting rate is not usable"),
        (["proxies.rate=1"], "The setting proxies.rate is not usable"),
        (["precision=fp8"], "The setting precision is not usable"),
        (["augmentation.flip=2"], "The setting augmentation.flip is not usable"),
        (["both.epochs=0"], "The setting both.epochs is not usable"),
        (["wise=1.5"], "The setting wise is not usable"),
        (["ema=1"], "The setting ema is not usable"),
        (["balanced"], "A setting is given as name=value, not as 'balanced'."),
        (["image=3", "image.epochs=4"], "The setting image is not usable"),
    ],
)
def test_a_setting_that_is_not_usable_is_named(assignments: list[str], said: str) -> None:
    with pytest.raises(TrainingError, match=re.escape(said)):
        RunConfig.parse(Recipe.MCIP, assignments)


def test_settings_may_come_from_a_file_and_those_given_beside_it_count(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("wise = 0.5\nbalanced = true\n[image]\nepochs = 7\nbetas = [0.8, 0.9]\n")
    config = RunConfig.parse(Recipe.GPR_FT, ["image.epochs=9", "seed=4"], file)
    default = RunConfig(recipe=Recipe.GPR_FT, seed=4, wise=0.5, balanced=True)
    image = default.image.model_copy(update={"epochs": 9, "betas": (0.8, 0.9)})
    assert config == default.model_copy(update={"image": image})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[image]\nrate = 1\n", "The setting image.rate is not usable"),
        ("image = 1\n", "The setting image is not usable"),
        ("[images]\nepochs = 1\n", "The setting images.epochs is not usable"),
        ("= 1\n", "settings.toml cannot be read"),
        ("\xff", "settings.toml cannot be read"),
        (None, "settings.toml cannot be read"),
    ],
)
def test_a_file_of_settings_that_is_not_usable_is_refused_by_name(
    tmp_path: Path, content: str | None, said: str
) -> None:
    file = tmp_path / "settings.toml"
    if content is not None:
        file.write_text(content, encoding="latin-1")
    with pytest.raises(TrainingError, match=re.escape(said)):
        RunConfig.parse(Recipe.MCIP, [], file)


def test_settings_survive_being_written() -> None:
    config = RunConfig.parse(Recipe.TWO_SFT, ["image.epochs=9", "wise=0.5"], seed=3)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config
