"""The training loop: schedule, groups, averages, parts, precision, and several processes."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.encoder import EncoderName
from indexer.finetune.batches import Pictures
from indexer.finetune.checkpoint import State
from indexer.finetune.objectives import ImageObjective, TextObjective
from indexer.finetune.recipes import Recipe, RunConfig, Schedule, Stage
from indexer.finetune.trainer import Course, Feed, Processes, _optimizer, fit, learning_rate
from indexer.samples import Samples
from indexer.torch_runtime import open_clip, torch
from tests import runs
from tests.models import PREPROCESS, new_model

pytestmark = pytest.mark.usefixtures("one_thread")

# No adaptive step and no clipping: a gradient of another length shows.
PLAIN = {"learning_rate": 0.1, "eps": 1.0}
ALONE = Processes(0, 1, torch.device("cpu"))
TOKENIZE = open_clip.SimpleTokenizer(context_length=16)
CAPTIONS = [(f"picture number {number}",) for number in range(20)]


class Watch:
    """A reporter that copies a model's weights after each step."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.weights: list[dict[str, torch.Tensor]] = []

    def update(self, _stage: str, _done: int, _total: int) -> None:
        self.weights.append({name: value.clone() for name, value in self.model.state_dict().items()})

    def close(self) -> None:
        """Nothing is open."""


def train(objective: Any, feed: Feed, config: RunConfig) -> list[dict[str, torch.Tensor]]:
    """Train, and return the weights after each step."""
    watch = Watch(objective.model)
    fit(objective, feed, Course(Stage.REALIGN, config, ALONE), State(losses=[[]]), lambda _: None, watch)
    return watch.weights


def test_the_learning_rate_rises_evenly_and_falls_as_a_cosine_to_its_floor() -> None:
    schedule = Schedule(epochs=1, batch=2, learning_rate=1, floor=0.1, warmup=0.2)
    found = [learning_rate(step, 20, schedule) for step in range(20)]
    rising = [0.25, 0.5, 0.75, 1.0]
    falling = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 16)) / 2 for step in range(16)]
    assert found == pytest.approx(rising + falling)
    assert found[4] == 1
    assert found[12] == pytest.approx(0.55)  # half-way
    assert 0.1 < found[-1] < 0.11


def test_without_warmup_the_learning_rate_is_highest_at_once() -> None:
    schedule = Schedule(epochs=1, batch=2, learning_rate=1)
    found = [learning_rate(step, 4, schedule) for step in range(4)]
    assert found == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    assert learning_rate(0, 1, schedule) == 1


def test_proxies_learn_as_many_times_faster_as_asked_and_vectors_do_not_decay() -> None:
    config = runs.config(Recipe.GPR_FT, schedule={"learning_rate": 1e-5, "weight_decay": 0.3}, proxies=50)
    objective = ImageObjective(new_model(0), 16, np.arange(7), config)
    groups = _optimizer(objective.trained, config.image, config.proxies).param_groups
    rates = {id(each): (group["lr"], group["weight_decay"]) for group in groups for each in group["params"]}
    assert rates.pop(id(objective.arc.proxies)) == (pytest.approx(5e-4), 0.3)
    tower = dict(objective.model.visual.named_parameters())
    assert {id(each) for each in tower.values()} == rates.keys()
    for name, parameter in tower.items():
        assert rates[id(parameter)] == (1e-5, 0.0 if parameter.ndim < 2 else 0.3), name


def test_a_feed_gives_each_process_its_part_of_the_same_batches() -> None:
    config = runs.config(Recipe.RE_A)
    feed = Feed(20, None, None)

    def indexes(rank: int, count: int, start: int = 0) -> list[list[int]]:
        processes = Processes(rank, count, torch.device("cpu"))
        return [batch.tolist() for batch, _ in feed.batches(Course(Stage.REALIGN, config, processes), start)]

    whole = indexes(0, 1)
    assert [len(batch) for batch in whole] == [8] * 6
    assert feed.steps(config.text) == 6
    for epoch in range(3):
        assert len({i for batch in whole[2 * epoch : 2 * epoch + 2] for i in batch}) == 16
    assert [batch[0::2] for batch in whole] == indexes(0, 2)
    assert [batch[1::2] for batch in whole] == indexes(1, 2)
    for start in range(7):
        assert indexes(0, 1, start) == whole[start:]


def test_a_picture_looks_different_each_time_and_the_same_in_whatever_process(samples: Samples) -> None:
    one = samples.subset([0] * 16)
    config = runs.config(Recipe.CLIP)
    feed = Feed(16, Pictures(one, {**PREPROCESS, "resize_mode": "squash"}, config.augmentation, 0, keep=True), None)

    def looks(rank: int, count: int, start: int = 0) -> list[bytes]:
        processes = Processes(rank, count, torch.device("cpu"))
        found = feed.batches(Course(Stage.CLIP, config, processes), start)
        return [each.numpy().tobytes() for _, pixels in found for each in (() if pixels is None else pixels)]

    whole = looks(0, 1)
    assert len(set(whole)) == len(whole) == 3 * 16
    assert set(looks(0, 2)) | set(looks(1, 2)) == set(whole)
    assert looks(0, 1, start=4) == whole[32:]


def test_where_classes_take_turns_every_batch_has_as_many_of_each() -> None:
    classes = np.repeat([0, 1], [20, 4])
    feed = Feed(24, None, classes)
    found = [classes[batch] for batch, _ in feed.batches(Course(Stage.CLASSES, runs.config(Recipe.GPR_FT), ALONE), 0)]
    assert [batch.tolist().count(1) for batch in found] == [4] * 9


def test_the_moving_average_is_that_of_the_weights_after_each_step() -> None:
    model = new_model(0)
    images = torch.nn.functional.normalize(torch.randn(20, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    objective = TextObjective(model, images, CAPTIONS, TOKENIZE, layers=16)
    first, *others = train(objective, Feed(20, None, None), runs.config(Recipe.RE_A, ema=0.8))
    assert len(others) == 5
    for name, found in model.state_dict().items():
        wanted = first[name].double().numpy()
        for weights in others:
            wanted = 0.8 * wanted + 0.2 * weights[name].double().numpy()
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)
    assert not model.text_projection.equal(others[-1]["text_projection"])


@pytest.mark.parametrize(("start", "sign", "end"), [(4.6, 1, math.log(100)), (0.01, -1, 0.0)])
def test_a_temperature_that_is_trained_stays_between_its_bounds(start: float, sign: int, end: float) -> None:
    model = new_model(0)
    # Texts that are where their pictures are want a greater scale, those on the other side a smaller one.
    with torch.no_grad():
        model.logit_scale.fill_(start)
        texts = model.encode_text(TOKENIZE([text for (text,) in CAPTIONS]), normalize=True)
    objective = TextObjective(model, sign * texts, CAPTIONS, TOKENIZE, layers=1)
    config = runs.config(Recipe.RE_A, schedule={"learning_rate": 0.003, "eps": 1e-8})
    train(objective, Feed(20, None, None), config)
    assert model.logit_scale.item() == pytest.approx(end, abs=1e-6)


def apart(run: Path, other: Path | None = None) -> float:
    """Return the largest difference between the weights of two runs, or of one and those it started from."""
    base = {name: value.numpy() for name, value in new_model(0).state_dict().items()}
    theirs = runs.weights(other) if other else base
    return max(float(np.abs(value - theirs[name]).max()) for name, value in runs.weights(run).items())


def test_a_batch_in_parts_trains_the_same_weights(samples: Samples, model: EncoderName, tmp_path: Path) -> None:
    for parts in (1, 2, 4):
        config = runs.config(Recipe.GPR_FT, schedule={**PLAIN, "accumulate": parts}, clip_norm=1e9)
        runs.tune(config, model, samples, tmp_path / str(parts))
    whole = tmp_path / "1"
    assert apart(whole, tmp_path / "2") < 0.001 * apart(whole)
    assert apart(whole, tmp_path / "4") < 0.001 * apart(whole)


def test_computing_activations_twice_keeps_fewer_of_them_and_changes_no_loss(
    samples: Samples, model: EncoderName, tmp_path: Path
) -> None:
    kept = {True: 0, False: 0}
    for twice in kept:

        def count(tensor: torch.Tensor, twice: bool = twice) -> torch.Tensor:
            kept[twice] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            runs.tune(runs.config(Recipe.MCIP_RE_A, checkpointing=twice), model, samples, tmp_path / str(twice))
    assert kept[True] < 0.7 * kept[False]
    once, again = ([each["loss"] for each in runs.losses(tmp_path / name)] for name in ("False", "True"))
    assert again == pytest.approx(once, rel=1e-5)


@pytest.mark.parametrize("recipe", [Recipe.CLIP, Recipe.MCIP_RE_A])
def test_in_bfloat16_the_loss_is_finite_and_falls(
    samples: Samples, model: EncoderName, tmp_path: Path, recipe: Recipe
) -> None:
    runs.tune(runs.config(recipe, precision="bf16", schedule={"epochs": 6}), model, samples, tmp_path / "run")
    runs.tune(runs.config(recipe, precision="fp32", schedule={"epochs": 6}), model, samples, tmp_path / "full")
    found, full = runs.losses(tmp_path / "run"), runs.losses(tmp_path / "full")
    stages = Counter(each["stage"] for each in found)
    assert set(stages.values()) == {18}
    for stage in stages:
        values = np.array([each["loss"] for each in found if each["stage"] == stage])
        assert np.isfinite(values).all()
        assert values[-6:].mean() < values[:6].mean()
    assert found[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.02)
    assert found[0]["loss"] != full[0]["loss"]  # it is not single precision by another name


@pytest.fixture(scope="module")
def two_processes(model: EncoderName, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make runs in two processes that torchrun starts, and the same ones in this."""
    folder = tmp_path_factory.mktemp("processes")
    table = runs.write_pictures(folder / "pictures", captions=1)
    configs = {
        "gpr-ft": runs.config(Recipe.GPR_FT, schedule=PLAIN, clip_norm=1e9),
        "parts": runs.config(Recipe.GPR_FT, schedule={**PLAIN, "accumulate": 2}, clip_norm=1e9),
        "re-a": runs.config(Recipe.RE_A, schedule=PLAIN, clip_norm=1e9),
        "clip": runs.config(Recipe.CLIP, schedule=PLAIN, clip_norm=1e9),
        "mcip-re-a": runs.config(Recipe.MCIP_RE_A, schedule={"epochs": 12}, ema=0.5, flatness=0.1),
    }
    both = [runs.Run(config=each, base=model, table=table, out=folder / "two" / name) for name, each in configs.items()]
    with runs.start(both, torchrun=2) as child:
        for name, each in configs.items():
            runs.Run(config=each, base=model, table=table, out=folder / "one" / name).make()
        said, _ = child.communicate(timeout=240)
    assert child.returncode == 0, said
    return folder


# InfoNCE contrasts the batches of all processes; with one caption for each picture, chance has no part in it.
@pytest.mark.parametrize("name", ["gpr-ft", "parts", "re-a", "clip"])
def test_two_processes_train_what_one_does(two_processes: Path, name: str) -> None:
    one, two = two_processes / "one" / name, two_processes / "two" / name
    wanted = [each["loss"] for each in runs.losses(one)]
    assert [each["loss"] for each in runs.losses(two)] == pytest.approx(wanted, rel=1e-3)
    assert apart(one, two) < 0.01 * apart(one)


def test_mcip_and_realignment_learn_in_two_processes(two_processes: Path) -> None:
    found = runs.losses(two_processes / "two" / "mcip-re-a")
    for stage, names in (("captions", ("loss", "arc", "captions")), ("realign", ("loss",))):
        for name in names:
            values = [each[name] for each in found if each["stage"] == stage]
            assert len(values) == 36
            assert np.mean(values[-12:]) < np.mean(values[:12])
