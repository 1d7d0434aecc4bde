"""The bundled model: on the demo collection by the generator's own truth, and on real photographs."""

import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from indexer import demo
from indexer.encoder import DEMO, DEMO_FOLDER, DEMO_NOTICE, Encoder, EncoderName, load_encoder
from indexer.evaluate.evaluation import evaluate
from indexer.evaluate.prompts import read_templates
from indexer.evaluate.task import EvaluateOptions
from indexer.samples import load_samples
from service.app import create_app
from service.settings import ServiceSettings
from tests.conftest import POLICY, build_snapshot


@pytest.fixture(scope="module")
def demo_encoder() -> Encoder:
    return load_encoder(EncoderName(model=DEMO), device="cpu", threads=1)


@pytest.fixture(scope="module")
def demo_client(tmp_path_factory: pytest.TempPathFactory, demo_encoder: Encoder) -> Iterator[TestClient]:
    """Serve the demo collection, as `make demo` does."""
    folder = tmp_path_factory.mktemp("demo")
    demo.write_collection(folder / "pictures")
    report = build_snapshot(
        folder / "pictures", folder / "s", demo_encoder, labels=str(folder / "pictures" / "metadata.jsonl")
    )
    assert (report.manifest.count, report.skipped.total()) == (2_000, 0)
    with TestClient(create_app(ServiceSettings(snapshots=folder / "s"))) as client:
        yield client


def test_eight_of_the_first_ten_pictures_show_what_a_text_asks_for(demo_client: TestClient) -> None:
    right = []
    for query in demo.queries(count=50, seed=0):
        answer = demo_client.post("/v1/search", json={"query": [{"text": query.text}], "limit": 10}).json()
        found = [(hit["metadata"]["kind"], hit["metadata"]["colour"]) for hit in answer["results"]]
        right.append(found.count((query.kind, query.colour)))
    assert len(right) == 50
    assert sum(right) / len(right) >= 8, sorted(right)


def test_drawn_things_are_classified_by_their_neighbours(demo_client: TestClient) -> None:
    right = 0
    for row in range(0, 2_000, 20):
        image = demo_client.app.state.live.searcher.snapshot.catalog.rows([row])[0]  # type: ignore[attr-defined]
        answer = demo_client.post("/v1/classify", json={"id": image.id}).json()
        right += answer["label"] == image.label
    assert right >= 80


def test_the_index_says_that_the_model_knows_only_drawn_things(demo_client: TestClient) -> None:
    assert demo_client.get("/v1/index").json()["notice"] == DEMO_NOTICE


def test_the_bundled_model_is_small_safetensors_with_a_card(demo_encoder: Encoder) -> None:
    sizes = {path.name: path.stat().st_size for path in DEMO_FOLDER.iterdir()}
    how = {"README.md", "templates.txt", "tuning.toml"}
    assert sizes.keys() == {"open_clip_config.json", "open_clip_model.safetensors", *how}
    assert sum(sizes.values()) <= 20_000_000
    assert json.loads((DEMO_FOLDER / "open_clip_config.json").read_text()).keys() == {"model_cfg", "preprocess_cfg"}
    card = (DEMO_FOLDER / "README.md").read_text()
    assert "python -m indexer finetune mcip-re-a" in card
    assert "nothing of the real world" in card
    local = load_encoder(EncoderName(model=f"local-dir:{DEMO_FOLDER}"), device="cpu", threads=1)
    assert (local.spec.image, local.spec.text) == (demo_encoder.spec.image, demo_encoder.spec.text)


def test_the_card_states_what_the_bundled_weights_are_worth(tmp_path: Path, demo_encoder: Encoder) -> None:
    demo.write_collection(tmp_path)
    options = EvaluateOptions(
        label_column="kind",
        instance_column="instance",
        templates=read_templates(DEMO_FOLDER / "templates.txt"),
        resamples=10,
    )
    figures = evaluate(demo_encoder, load_samples(tmp_path / "metadata.jsonl", None, POLICY), options).report.figures
    section = (DEMO_FOLDER / "README.md").read_text().split("these very weights")[1]
    stated = {name: float(value) for name, value in re.findall(r"^\| ([^|]+) \| ([\d.]+) \|$", section, re.MULTILINE)}
    titles = {
        "I2I mAP": "image_to_image_map",
        "I2I R@1": "image_to_image_r1",
        "k-NN": "knn_accuracy",
        "Zero-shot": "zero_shot_accuracy",
        "T2I R@5": "text_to_image_r5",
    }
    assert {title: stated[title] for title in titles} == pytest.approx(
        {title: 100 * figures[name].value for title, name in titles.items()}, abs=0.3
    )


def test_photographs_are_found_by_crops_of_them_and_classified(
    real_data: Path, tmp_path: Path, demo_encoder: Encoder
) -> None:
    source = real_data / "photos" / "caltech101"
    report = build_snapshot(source, tmp_path / "s", demo_encoder)
    assert (report.manifest.count, report.skipped.total()) == (1_650, 0)
    paths = random.Random(0).sample(sorted(source.glob("*/*.jpg")), 50)
    first = right = 0
    with TestClient(create_app(ServiceSettings(snapshots=tmp_path / "s"))) as client:
        for path in paths:
            with Image.open(path) as image:
                width, height = image.size
                dx, dy = width * (1 - 0.8**0.5) / 2, height * (1 - 0.8**0.5) / 2
                data = io.BytesIO()
                image.crop((round(dx), round(dy), round(width - dx), round(height - dy))).save(data, "PNG")
            answer = client.post("/v1/search", files={"file": data.getvalue()}, data={"limit": "1"}).json()
            first += answer["results"][0]["path"] == path.relative_to(source).as_posix()
            answer = client.post("/v1/classify", files={"file": data.getvalue()}).json()
            assert sum(each["probability"] for each in answer["classes"]) == pytest.approx(1)
            right += answer["label"] == path.parent.name
    assert first >= 45
    assert right >= 5  # 66 labels: chance is under 1 of 50
