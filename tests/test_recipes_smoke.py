"""Every recipe on the bundled model for half a minute, and what comes of it in a running service: `make recipes-smoke`.

What the bundled model knows it knows well, so it is taught something new: every colour goes by the name of another.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from indexer import demo
from indexer.encoder import DEMO, EncoderName, load_encoder
from indexer.finetune.recipes import Recipe, RunConfig
from indexer.open_clip_encoder import load_model
from indexer.samples import Samples, encode_samples, load_samples
from indexer.store import SnapshotStore
from service.app import create_app
from service.settings import ServiceSettings
from tests import runs
from tests.conftest import ADMIN_KEY, POLICY, build_snapshot

COUNT = 144
OTHER_NAMES = dict(zip(demo.COLOURS, (*demo.COLOURS[1:], demo.COLOURS[0]), strict=True))
PARTS = {"clip": ["loss"], "classes": ["loss"], "captions": ["loss", "arc", "captions"], "realign": ["loss"]}


def renamed(text: str) -> str:
    """Call every colour by another's name."""
    return re.sub("|".join(OTHER_NAMES), lambda found: OTHER_NAMES[found[0]], text)


def config(recipe: Recipe) -> RunConfig:
    schedule = {"epochs": 4, "batch": 24, "learning_rate": 3e-4}
    image = {**schedule, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    return RunConfig.model_validate(
        {
            "recipe": recipe,
            "image": image,
            "text": schedule,
            "both": schedule,
            "augmentation": {"flip": 0, "jitter": 0.1},  # captions tell left from right, shades tell things apart
        }
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw a small collection that the bundled model was trained on the like of."""
    folder = tmp_path_factory.mktemp("smoke") / "pictures"
    demo.write_collection(folder, count=COUNT, fold=demo.Fold.TRAIN)
    return folder


@pytest.fixture(scope="module")
def samples(pictures: Path) -> Samples:
    """Label each picture by its instance, and caption it in the language of other colours."""
    drawn = load_samples(pictures / "metadata.jsonl", None, POLICY)
    captions = [[renamed(sample.captions[0])] for sample in drawn]
    return drawn.relabelled(drawn.column("instance")).recaptioned(captions)


@pytest.fixture(scope="module")
def tuned(samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> dict[Recipe, Path]:
    """Make a run of each recipe; Re-A goes on from MCIP."""
    folder = tmp_path_factory.mktemp("runs")
    for recipe in (Recipe.MCIP, Recipe.RE_A, Recipe.MCIP_RE_A, Recipe.GPR_FT, Recipe.TWO_SFT, Recipe.CLIP):
        base = named(folder / Recipe.MCIP) if recipe is Recipe.RE_A else EncoderName(model=DEMO)
        runs.tune(config(recipe), base, samples, folder / recipe)
    return {recipe: folder / recipe for recipe in Recipe}


def named(out: Path) -> EncoderName:
    return EncoderName(model=f"local-dir:{out / 'model'}")


@pytest.mark.parametrize("recipe", Recipe)
def test_every_loss_falls(tuned: dict[Recipe, Path], recipe: Recipe) -> None:
    found = runs.losses(tuned[recipe])
    for stage in recipe.stages:
        for name in PARTS[stage]:
            values = [each[name] for each in found if each["stage"] == stage]
            assert len(values) == 24
            assert np.mean(values[-8:]) < np.mean(values[:8]), (stage, name, values)


def halves(weights: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the weights of the image half and those of the text half."""
    image = {name: value for name, value in weights.items() if name.startswith("visual.")}
    return image, {name: value for name, value in weights.items() if name not in image}


def test_mcip_leaves_the_text_tower_as_it_was_bit_for_bit(tuned: dict[Recipe, Path]) -> None:
    base = {name: value.numpy() for name, value in load_model(EncoderName(model=DEMO)).model.state_dict().items()}
    image, text = halves(base)
    for recipe in (Recipe.MCIP, Recipe.GPR_FT):
        new_image, new_text = halves(runs.weights(tuned[recipe]))
        assert runs.same(new_text, text) == text.keys()
        assert runs.same(new_image, image) != image.keys()


def test_realignment_leaves_the_image_tower_and_its_embeddings_as_they_were_bit_for_bit(
    tuned: dict[Recipe, Path], samples: Samples
) -> None:
    image, text = halves(runs.weights(tuned[Recipe.MCIP]))
    new_image, new_text = halves(runs.weights(tuned[Recipe.RE_A]))
    assert runs.same(new_image, image) == image.keys()
    assert runs.same(new_text, text) != text.keys()
    before, after = (
        encode_samples(samples, load_encoder(named(tuned[recipe]), device="cpu", threads=1)).embeddings
        for recipe in (Recipe.MCIP, Recipe.RE_A)
    )
    assert before.shape == (COUNT, 128)
    assert after.tobytes() == before.tobytes()


def test_mcip_and_realignment_in_one_run_are_the_two_runs(tuned: dict[Recipe, Path]) -> None:
    both, last = runs.weights(tuned[Recipe.MCIP_RE_A]), runs.weights(tuned[Recipe.RE_A])
    assert runs.same(both, last) == both.keys()


@pytest.fixture(scope="module")
def snapshots(tuned: dict[Recipe, Path], pictures: Path) -> Path:
    """Build a snapshot with the MCIP model."""
    folder = tuned[Recipe.MCIP].parent / "snapshots"
    encoder = load_encoder(named(tuned[Recipe.MCIP]), device="cpu", threads=1)
    report = build_snapshot(pictures, folder, encoder, labels=str(pictures / "metadata.jsonl"))
    assert (report.manifest.count, report.skipped.total()) == (COUNT, 0)
    return folder


@pytest.fixture(scope="module")
def client(snapshots: Path) -> Iterator[TestClient]:
    """Serve that snapshot."""
    settings = ServiceSettings.model_validate({"snapshots": snapshots, "admin_key": ADMIN_KEY})
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {ADMIN_KEY}"}) as client:
        yield client


def search(client: TestClient, query: dict[str, Any]) -> list[dict[str, Any]]:
    answer = client.post("/v1/search", json={"query": [query], "limit": 100})
    assert answer.status_code == 200
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def test_the_realigned_text_half_swaps_into_a_running_service_without_a_reindex(
    client: TestClient, snapshots: Path, pictures: Path, tuned: dict[Recipe, Path]
) -> None:
    store = SnapshotStore(snapshots)
    before = client.get("/v1/index").json()
    stored = (snapshots / before["snapshot"] / "embeddings.npy").read_bytes()
    examples = sorted(pictures.glob("*/*.*"))[::17]

    def by_picture() -> list[bytes]:
        answers = [client.post("/v1/search", files={"file": path.read_bytes()}).json()["results"] for path in examples]
        answers += [search(client, {"id": answer[0]["id"]}) for answer in answers]
        return [repr(answer).encode() for answer in answers]

    pictures_before = by_picture()
    question = renamed("a red star")  # which the base takes for another colour
    texts_before = search(client, {"text": question})

    swapped = client.post("/admin/v1/text-encoder", json={"model": named(tuned[Recipe.RE_A]).model})
    assert swapped.status_code == 200
    after = client.get("/v1/index").json()
    assert after["snapshot"] == before["snapshot"] == store.published()
    assert store.ids() == [before["snapshot"]]
    assert (after["encoder"]["image"], after["encoder"]["text"] == before["encoder"]["text"]) == (
        before["encoder"]["image"],
        False,
    )
    assert (snapshots / before["snapshot"] / "embeddings.npy").read_bytes() == stored
    assert by_picture() == pictures_before

    embeddings = np.load(snapshots / before["snapshot"] / "embeddings.npy")
    rows = store.open(before["snapshot"]).catalog.rows(range(COUNT))
    for recipe, found in ((Recipe.MCIP, texts_before), (Recipe.RE_A, search(client, {"text": question}))):
        text = load_encoder(named(tuned[recipe]), device="cpu", threads=1).encode_texts([question])[0]
        wanted = dict(zip([row.id for row in rows], (embeddings @ text).tolist(), strict=True))
        assert [each["score"] for each in found] == pytest.approx([wanted[each["id"]] for each in found], abs=2e-6)
        assert found[-1]["score"] >= sorted(wanted.values())[-100] - 2e-6
    assert [each["score"] for each in texts_before] != [each["score"] for each in found]
    # The service has learned the new names: red stars are found by the name that red has now.
    red = [each["metadata"]["colour"] == "red" and each["label"] == "star" for each in found]
    assert sum(red[:10]) >= 8


def test_a_build_with_the_realigned_model_encodes_no_picture_again(
    snapshots: Path, pictures: Path, tuned: dict[Recipe, Path], tmp_path: Path
) -> None:
    shutil.copytree(snapshots, tmp_path / "snapshots")
    encoder = load_encoder(named(tuned[Recipe.RE_A]), device="cpu", threads=1)
    report = build_snapshot(pictures, tmp_path / "snapshots", encoder)
    assert (report.encoded, report.reused) == (0, COUNT)
