"""The recipes side by side: one base model, the same data and budget, several seeds.

`python -m tests.bench.recipes demo FOLDER` (or `make recipes`) does it on the demo generator's instances, with the
settings that the bundled model was made with; `python -m tests.bench.recipes real FOLDER` on the real pictures below
`KINDRED_REAL_DATA`. A run that has ended is not run again, so that an interrupted programme goes on, and two can share
the work (`--seeds`).
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from indexer.captions import Percentile, mine_corpus
from indexer.clusters import cluster_labels
from indexer.demo import Fold, write_collection
from indexer.encoder import DEMO_FOLDER, EncoderName, load_encoder
from indexer.evaluate.compare import Comparison, compare
from indexer.evaluate.evaluation import evaluate
from indexer.evaluate.prompts import read_templates
from indexer.evaluate.report import REPORT_FILE, Evaluation
from indexer.evaluate.task import CaptionChoice, EvaluateOptions
from indexer.finetune.export import WEIGHTS
from indexer.finetune.pretrain import PretrainConfig, pretrain
from indexer.finetune.recipes import Recipe, RunConfig
from indexer.finetune.run import TrainingData, finetune
from indexer.images import DecodePolicy
from indexer.progress import ProgressStyle, reporter
from indexer.samples import Samples, encode_samples, load_samples
from indexer.settings import Settings
from tests.bench.real_tables import emoji_table, photo_table

# Without full stops: the bundled model never saw one.
TEMPLATES = read_templates(DEMO_FOLDER / "templates.txt")

_TABLES = {False: "recipes", True: "variants"}

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@dataclass(frozen=True)
class Bench:
    """What all rows of a table have in common."""

    base: EncoderName
    train: Samples
    test: Samples
    options: EvaluateOptions
    settings: Path
    folder: Path
    results: Path

    def row(self, name: str, seed: int, recipe: Recipe, base: EncoderName | None = None, *more: str) -> EncoderName:
        """Return the model of a row, trained now if it was not before."""
        out = self.folder / f"{name}-{seed}"
        if not (out / "model" / WEIGHTS).exists():
            config = RunConfig.parse(recipe, more, self.settings, seed=seed)
            data = TrainingData(self.train, self.train, {"programme": "tests.bench.recipes"})
            finetune(config, base or self.base, data, out, "cpu", reporter(ProgressStyle.PLAIN))
        return EncoderName(model=f"local-dir:{out / 'model'}")

    def measure(self, name: str, model: EncoderName) -> Evaluation:
        """Evaluate a model, or take what was measured before."""
        saved = self.results / name
        if not (saved / REPORT_FILE).exists():
            saved.mkdir(parents=True, exist_ok=True)
            encoder = load_encoder(model, device="cpu", threads=1)
            evaluate(encoder, self.test, replace(self.options, model=name)).save(saved)
        return Evaluation.load(saved)

    def rows(self, seed: int) -> dict[str, Evaluation]:
        """Return every row of one seed. Re-A on a model is the second stage of `2sft` and of `mcip-re-a`."""
        gpr_ft = self.row("gpr-ft", seed, Recipe.GPR_FT)
        mcip = self.row("mcip", seed, Recipe.MCIP)
        models = {
            "GPR-FT": gpr_ft,
            "2SFT": self.row("2sft", seed, Recipe.RE_A, gpr_ft),
            "MCIP": mcip,
            "MCIP+Re-A": self.row("mcip-re-a", seed, Recipe.RE_A, mcip),
        }
        return {name: self.measure(f"{name}-{seed}", model) for name, model in models.items()}

    def variants(self, seed: int) -> dict[str, Evaluation]:
        """Return MCIP of one seed, and what else it may be: with the extra term, with less that the user must give."""
        encoder = load_encoder(self.base, device="cpu", threads=1)
        images = encode_samples(self.train, encoder).embeddings
        corpus = list(dict.fromkeys(text for sample in self.train for text in sample.captions))
        found = mine_corpus(images, corpus, encoder, Percentile(80))
        mined = replace(self, train=self.train.recaptioned([[match.caption for match in each] for each in found]))
        clustered = replace(self, train=self.train.relabelled(cluster_labels(images, seed)))
        models = {
            "MCIP": self.row("mcip", seed, Recipe.MCIP),
            "MCIP, extra term 0.1": self.row("flatness", seed, Recipe.MCIP, None, "flatness=0.1"),
            "MCIP, pseudo-captions": mined.row("pseudo-captions", seed, Recipe.MCIP, None, "most_captions=40"),
            "MCIP, labels auto": clustered.row("clusters", seed, Recipe.MCIP),
        }
        return {name: self.measure(f"{name}-{seed}", model) for name, model in models.items()}

    def compare(self, rows: Callable[[int], dict[str, Evaluation]], seeds: Sequence[int], name: str) -> Comparison:
        """Return the table of the base and some rows, and write it."""
        runs = [rows(seed) for seed in seeds]
        found: Mapping[str, list[Evaluation]] = {row: [run[row] for run in runs] for row in runs[0]}
        comparison = compare({"base": [self.measure("base", self.base)], **found})
        (self.results / f"{name}.json").write_text(comparison.model_dump_json(indent=1), encoding="utf-8")
        (self.results / f"{name}.md").write_text(comparison.markdown(every=True) + "\n", encoding="utf-8")
        return comparison


Folder = Annotated[Path, typer.Argument(help="Where pictures, models and tables go.")]
Seeds = Annotated[str, typer.Option(help="Seeds, with commas.")]


@app.command()
def demo(
    folder: Folder,
    base: Annotated[Path | None, typer.Option(help="A base made before by `python -m indexer pretrain`.")] = None,
    seeds: Seeds = "0,1,2",
    pictures: Annotated[int, typer.Option(help="How many to tune on.")] = 24_000,
    variants: Annotated[bool, typer.Option("--variants", help="MCIP and what is left open in it.")] = False,
    test_seed: Annotated[
        int, typer.Option(help="Of the test; the settings were chosen on 0, the demo collection.")
    ] = 0,
) -> None:
    """Tune the base of the demo model on instances that captions do not tell apart; test on others."""
    test = folder / f"test-{test_seed}"
    write_collection(test, seed=test_seed)
    write_collection(folder / "train", count=pictures, seed=1, fold=Fold.TRAIN)
    if base is None:
        base = folder / "base"
        if not (base / WEIGHTS).exists():
            pretrain(PretrainConfig(), base)
    bench = Bench(
        base=EncoderName(model=f"local-dir:{base}"),
        train=_told_by(_load(folder / "train" / "metadata.jsonl"), "instance"),
        test=_load(test / "metadata.jsonl"),
        options=EvaluateOptions(data=f"demo collection {test_seed}", instance_column="instance", templates=TEMPLATES),
        settings=DEMO_FOLDER / "tuning.toml",
        folder=folder / "runs",
        results=folder / f"results-{test_seed}",
    )
    print(bench.compare(bench.variants if variants else bench.rows, _numbers(seeds), _TABLES[variants]).table())


@app.command()
def real(
    folder: Folder,
    start: Annotated[Path, typer.Option(help="The model that the bases are trained from, as plain CLIP.")],
    seeds: Seeds = "0,1,2",
) -> None:
    """Train a base on the training side of emoji and of photographs, tune it there, and test on the other side."""
    data = Path(os.environ["KINDRED_REAL_DATA"])
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in {"emoji": emoji_table, "photos": photo_table}.items():
        table = folder / f"{name}.jsonl"
        table.write_text("".join(json.dumps(row) + "\n" for row in write(data)), encoding="utf-8")
        samples = _load(table)
        train = _told_by(samples.where({"fold": "train"}), "instance")
        options = EvaluateOptions(
            data=name, instance_column="instance", captions=CaptionChoice.FIRST, templates=TEMPLATES
        )
        bench = Bench(
            base=EncoderName(model=f"local-dir:{start}"),
            train=train,
            test=samples.where({"fold": "test"}),
            options=options,
            settings=Path(__file__).with_name("real.toml"),
            folder=folder / name,
            results=folder / name / "results",
        )
        bench = replace(bench, base=bench.row("base", 0, Recipe.CLIP))
        print(bench.compare(bench.rows, _numbers(seeds), _TABLES[False]).table())


def _load(table: Path) -> Samples:
    return load_samples(table, None, DecodePolicy.of(Settings()))


def _told_by(samples: Samples, column: str) -> Samples:
    return samples.relabelled(samples.column(column))


def _numbers(seeds: str) -> list[int]:
    return [int(seed) for seed in seeds.split(",")]


if __name__ == "__main__":
    app()
