"""`python -m indexer finetune`: tune a CLIP model by a recipe, and set it beside its base."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from indexer.clusters import cluster_labels
from indexer.encoder import EncoderName, load_encoder
from indexer.errors import TrainingError
from indexer.finetune.recipes import Recipe, RunConfig
from indexer.finetune.split import hold_out
from indexer.images import DecodePolicy
from indexer.progress import ProgressStyle, Reporter, reporter
from indexer.samples import LABEL, Samples, conditions, encode_samples, load_samples
from indexer.settings import Settings

AUTO = "auto"


def finetune(
    recipe: Annotated[Recipe, typer.Argument(help="What to train, and how: see indexer/README.md.")],
    data: Annotated[
        Path, typer.Option(help="Folder of pictures, table (.csv, .jsonl, .parquet), or WebDataset shards.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the run: a new one, or that of the same run, interrupted.")],
    labels: Annotated[
        str | None, typer.Option(help="parent (folder names), gpr1200, a table, or auto: clusters by the base model.")
    ] = None,
    label_column: Annotated[str, typer.Option(help="What pictures are to be told apart by.")] = LABEL,
    class_column: Annotated[
        str | None, typer.Option(help="For k-NN and zero-shot in the evaluation, instead of the label column.")
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="Only pictures with column=value; repeatable.")] = None,
    test: Annotated[Path | None, typer.Option(help="Pictures to evaluate on, instead of some of --data.")] = None,
    test_where: Annotated[list[str] | None, typer.Option(help="Of these, those with column=value; repeatable.")] = None,
    held_out: Annotated[
        float, typer.Option(min=0.01, max=0.5, help="With neither: part of the classes to evaluate on.")
    ] = 0.1,
    templates: Annotated[Path | None, typer.Option(help="Prompts to evaluate with, as evaluate takes them.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Captioned pictures for Re-A and clip, instead of those of --data.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model, instead of KINDRED_MODEL.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="Its weights, instead of KINDRED_PRETRAINED.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
    config: Annotated[Path | None, typer.Option(help="Settings, a TOML file.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, such as image.learning_rate=1e-5; repeatable.")
    ] = None,
    progress: Annotated[ProgressStyle, typer.Option(help="How to show progress.")] = ProgressStyle.AUTO,
) -> None:
    """Tune a CLIP model for image retrieval and set it beside its base. An interrupted run in --out goes on."""
    if importlib.util.find_spec("matplotlib") is None:
        raise TrainingError("Training draws its losses with matplotlib: pip install 'kindred[train]'.")
    # torch takes seconds to import
    from indexer.evaluate.output import compare_models  # noqa: PLC0415
    from indexer.evaluate.prompts import TEMPLATES, read_templates  # noqa: PLC0415
    from indexer.evaluate.task import EvaluateOptions  # noqa: PLC0415
    from indexer.finetune.run import TrainingData  # noqa: PLC0415
    from indexer.finetune.run import finetune as tune  # noqa: PLC0415

    settings = Settings()
    run = RunConfig.parse(recipe, changes or [], config, seed=seed)
    base = EncoderName.of(settings, model, pretrained)
    policy = DecodePolicy.of(settings)
    shown = reporter(progress)
    try:
        everything = load_samples(data, None if labels == AUTO else labels, policy)
        samples = everything.where(conditions(where or []))
        if labels == AUTO:
            samples, label_column = _clustered(samples, base, settings, seed, shown), LABEL
        else:
            samples = samples.relabelled(samples.column(label_column))
        if test or test_where:
            tested = load_samples(test, None, policy) if test else everything
            tested = tested.where(conditions(test_where or []))
        else:
            samples, tested = hold_out(samples, held_out, seed)
        captioned = load_samples(pairs, None, policy) if pairs else samples
        said = {"samples": str(data), "pairs": str(pairs or data), "labels": labels, "label_column": label_column}
        tuned = tune(run, base, TrainingData(samples, captioned, said), out, settings.device, shown, settings.threads)
        options = EvaluateOptions(
            data=f"{(test or data).name}, not trained on",
            label_column=class_column or label_column,
            instance_column=label_column,
            templates=read_templates(templates) if templates else TEMPLATES,
        )
        if tuned is not None:
            models = {"base": base, recipe.value: tuned}
            comparison = compare_models(models, tested, options, settings, out / "evaluation", shown)
    finally:
        shown.close()
    if tuned is not None:
        print(
            f"{comparison.table()}\n\nThe model is {tuned}; {out / 'evaluation' / 'comparison.html'} shows all figures."
        )


def _clustered(samples: Samples, base: EncoderName, settings: Settings, seed: int, shown: Reporter) -> Samples:
    """Return the pictures that the base model can encode, labelled by the clusters of their embeddings."""
    encoder = load_encoder(base, device=settings.device, threads=settings.threads)
    encoded = encode_samples(samples, encoder, shown)
    return encoded.samples.relabelled(cluster_labels(encoded.embeddings, seed))
