"""`python -m indexer finetune`: from data to a run's folder."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from indexer import demo
from indexer.__main__ import app
from indexer.encoder import EncoderName, load_encoder
from indexer.errors import TrainingError
from indexer.finetune.recipes import Recipe
from tests import runs

SHORT = [f"--set={group}.{setting}" for group in ("image", "text") for setting in ("epochs=1", "learning_rate=1e-3")]


def finetune(recipe: str, *arguments: object) -> Result:
    """Run the command on small batches."""
    options = [*SHORT, "--set=image.batch=8", "--set=text.batch=8", *map(str, arguments)]
    return CliRunner().invoke(app, ["finetune", recipe, *options], catch_exceptions=False)


def test_a_runs_folder_holds_the_model_its_settings_its_losses_and_what_it_has_come_to(
    table: Path, model: EncoderName, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = finetune("mcip-re-a", "--data", table, "--model", model.model, "--out", out, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {
        "config.json", "model", "losses.jsonl", "losses.svg", "evaluation"
    }  # fmt: skip
    record = json.loads((out / "config.json").read_text())
    assert (record["config"]["recipe"], record["config"]["seed"]) == ("mcip-re-a", 3)
    base = load_encoder(model, device="cpu", threads=1)
    tuned = load_encoder(EncoderName(model=f"local-dir:{out / 'model'}"), device="cpu", threads=1)
    assert record["base"]["image"] == base.spec.image != tuned.spec.image
    assert {loss["stage"] for loss in runs.losses(out)} == {"captions", "realign"}
    assert (out / "losses.svg").read_text().count("<svg") == 1
    rows = json.loads((out / "evaluation" / "comparison.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["base", "mcip-re-a"]
    assert f"local-dir:{out / 'model'}" in result.output
    with pytest.raises(TrainingError, match="has ended"):
        finetune("mcip-re-a", "--data", table, "--model", model.model, "--out", out, "--seed", 3)


def test_one_class_in_ten_is_kept_for_the_evaluation(table: Path, model: EncoderName, tmp_path: Path) -> None:
    finetune("gpr-ft", "--data", table, "--model", model.model, "--out", tmp_path / "run")
    trained = json.loads((tmp_path / "run" / "config.json").read_text())["data"]["samples"]["count"]
    tested = json.loads((tmp_path / "run" / "evaluation" / "comparison.json").read_text())["pictures"]
    assert (trained, tested) == (16, 8)  # of three classes of eight, one


def test_a_collection_without_labels_is_tuned_on_its_clusters(model: EncoderName, tmp_path: Path) -> None:
    demo.write_collection(tmp_path / "pictures", count=80)
    (tmp_path / "pictures" / "metadata.jsonl").unlink()
    data = ("--data", tmp_path / "pictures", "--model", model.model)
    with pytest.raises(TrainingError, match="--labels auto"):
        finetune("gpr-ft", *data, "--out", tmp_path / "none")
    result = finetune("gpr-ft", *data, "--out", tmp_path / "run", "--labels", "auto", "--set=image.epochs=6")
    assert result.exit_code == 0, result.output
    losses = [loss["loss"] for loss in runs.losses(tmp_path / "run")]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_pictures_in_shards_train_the_same_weights_as_in_a_folder(
    table: Path, model: EncoderName, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for number, line in enumerate(table.read_text().splitlines()):
            row = json.loads(line)
            picture = (table.parent / row.pop("path")).read_bytes()
            for ending, data in (("png", picture), ("json", json.dumps(row).encode())):
                member = tarfile.TarInfo(f"{number:03}.{ending}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    for name, data in (("folder", table), ("shards", tmp_path / "0.tar")):
        result = finetune("mcip", "--data", data, "--test", table, "--model", model.model, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    folder = runs.weights(tmp_path / "folder")
    assert runs.same(folder, runs.weights(tmp_path / "shards")) == folder.keys()


def test_training_and_evaluation_may_take_different_rows_of_one_table(
    table: Path, model: EncoderName, tmp_path: Path
) -> None:
    options = ("--data", table, "--test-where", "label=red", "--model", model.model, "--out", tmp_path / "run")
    finetune("re-a", "--where", "label=blue", *options)
    trained = json.loads((tmp_path / "run" / "config.json").read_text())["data"]["pairs"]["count"]
    tested = json.loads((tmp_path / "run" / "evaluation" / "comparison.json").read_text())["pictures"]
    assert (trained, tested) == (8, 8)


def test_every_recipe_of_the_paper_has_its_name() -> None:
    assert set(Recipe) == {"clip", "gpr-ft", "re-a", "2sft", "mcip", "mcip-re-a"}
