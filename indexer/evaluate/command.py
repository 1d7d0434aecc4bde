"""`python -m indexer evaluate`: one model, or several side by side."""

import contextlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from indexer.encoder import EncoderName
from indexer.evaluate.compare import Comparison
from indexer.evaluate.compare import compare as put_side_by_side
from indexer.evaluate.models import evaluate_models
from indexer.evaluate.prompts import TEMPLATES, read_descriptions, read_templates
from indexer.evaluate.report import Evaluation, Report
from indexer.evaluate.task import CaptionChoice, EvaluateOptions
from indexer.images import DecodePolicy
from indexer.progress import ProgressStyle, reporter
from indexer.samples import GPR1200, LABEL, Samples, conditions, load_samples
from indexer.settings import Settings

# Such as base=demo or tuned=local-dir:/runs/1; a path may hold a later =.
_NAMED = re.compile(r"([\w.+-]+)=(.+)")

Data = Annotated[Path, typer.Option(help="Folder of pictures, table (.csv, .jsonl, .parquet), or WebDataset shards.")]
Models = Annotated[
    list[str] | None,
    typer.Argument(
        help="With --compare: names as for --model, weights after a comma, a name of your own before it: "
        "base=ViT-B-32,openai tuned=local-dir:/runs/1"
    ),
]
Compare = Annotated[bool, typer.Option("--compare", help="Put several models side by side, against the first.")]
Model = Annotated[str | None, typer.Option(help="Encoder, instead of KINDRED_MODEL.")]
Pretrained = Annotated[str | None, typer.Option(help="Its weights, instead of KINDRED_PRETRAINED.")]
Labels = Annotated[str | None, typer.Option(help="parent (folder names), gpr1200, or a table.")]
LabelColumn = Annotated[str, typer.Option(help="The class of a picture, for k-NN and zero-shot.")]
InstanceColumn = Annotated[str | None, typer.Option(help="What image-to-image looks for, instead of the label column.")]
Where = Annotated[list[str] | None, typer.Option(help="Only pictures with column=value; repeatable.")]
GalleryWhere = Annotated[
    list[str] | None,
    typer.Option(help="Pictures with column=value vote in k-NN, not the others of --where; repeatable."),
]
Choice = Annotated[CaptionChoice, typer.Option(help="Which captions of a picture count.")]
WithoutSelf = Annotated[bool, typer.Option("--without-self", help="Leave the query out of image-to-image answers.")]
Templates = Annotated[Path | None, typer.Option(help="Zero-shot prompts, one per line, with {} for the class.")]
Descriptions = Annotated[Path | None, typer.Option(help="JSON: a list of descriptions for each class, for zero-shot.")]
Index = Annotated[str | None, typer.Option(help="FAISS factory string of an index whose recall is measured.")]
Examples = Annotated[int, typer.Option(min=0, help="How many best, median and worst queries to show.")]
Out = Annotated[Path | None, typer.Option(help="Folder for report.json, report.html and queries.npz; must not exist.")]
Progress = Annotated[ProgressStyle, typer.Option(help="How to show progress.")]


def evaluate(
    data: Data,
    models: Models = None,
    compare: Compare = False,
    model: Model = None,
    pretrained: Pretrained = None,
    labels: Labels = None,
    label_column: LabelColumn = LABEL,
    instance_column: InstanceColumn = None,
    where: Where = None,
    gallery_where: GalleryWhere = None,
    captions: Choice = CaptionChoice.ALL,
    without_self: WithoutSelf = False,
    templates: Templates = None,
    descriptions: Descriptions = None,
    index: Index = None,
    examples: Examples = 3,
    out: Out = None,
    progress: Progress = ProgressStyle.AUTO,
) -> None:
    """Measure what a model is worth on labelled or captioned pictures, or put several models side by side."""
    settings = Settings()
    named = _compared(models, model) if compare else _single(models, model, pretrained, settings)
    options = EvaluateOptions(
        data=" ".join([data.name, *(where or [])]),
        label_column=label_column,
        instance_column=instance_column,
        with_self=not without_self,
        gpr1200=labels == GPR1200,
        captions=captions,
        templates=TEMPLATES if templates is None else read_templates(templates),
        descriptions=None if descriptions is None else read_descriptions(descriptions),
        index=index,
        examples=examples,
    )
    with _folder(out):
        everything = load_samples(data, labels, DecodePolicy.of(settings))
        samples = everything.where(conditions(where or []))
        gallery = everything.where(conditions(gallery_where)) if gallery_where else None
        shown = reporter(progress)
        try:
            evaluations = evaluate_models(named, samples, options, settings, shown, gallery)
        finally:
            shown.close()
        _finish(evaluations, samples, out, compare=compare, as_json=progress is ProgressStyle.JSON)


def _single(
    models: Sequence[str] | None, model: str | None, pretrained: str | None, settings: Settings
) -> dict[str, EncoderName]:
    if models:
        raise typer.BadParameter("Several models are for --compare; name one with --model.", param_hint="MODELS")
    name = EncoderName.of(settings, model, pretrained)
    return {str(name): name}


def _compared(models: Sequence[str] | None, model: str | None) -> dict[str, EncoderName]:
    if model is not None or len(models or []) < 2:  # noqa: PLR2004 - one cannot be compared
        raise typer.BadParameter(
            "Give the models after it, two at least and none with --model: --compare base=demo tuned=local-dir:/runs/1",
            param_hint="--compare",
        )
    found: dict[str, EncoderName] = {}
    for argument in models or []:
        named = _NAMED.fullmatch(argument)
        whole = named[2] if named else argument
        source, _, weights = (whole, "", "") if ":" in whole else whole.partition(",")
        # It names a folder of the output too.
        name = re.sub(r"[^\w.+-]", "-", named[1] if named else Path(whole).name).strip(".") or "model"
        if name in found:
            raise typer.BadParameter(f"Two models are called {name!r}; write name=MODEL.", param_hint="MODELS")
        found[name] = EncoderName(model=source, pretrained=weights or None)
    return found


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[None]:
    """Make the folder of the report before the work begins, and leave none behind if that fails."""
    if out is None:
        yield
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise typer.BadParameter("Pages are drawn with matplotlib: pip install 'kindred[train]'.", param_hint="--out")
    try:
        out.mkdir(parents=True)
    except FileExistsError as error:
        raise typer.BadParameter(f"{out} exists already; a report is never overwritten.", param_hint="--out") from error
    except OSError as error:
        raise typer.BadParameter(f"{out} cannot be made: {error.strerror}.", param_hint="--out") from error
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            out.rmdir()
        raise


def _finish(
    evaluations: dict[str, Evaluation], samples: Samples, out: Path | None, *, compare: bool, as_json: bool
) -> None:
    single = next(iter(evaluations.values()))
    result: Report | Comparison = single.report
    if compare:
        result = put_side_by_side({name: [each] for name, each in evaluations.items()})
    typer.echo(result.model_dump_json() if as_json else result.table())
    if out is not None:
        from indexer.evaluate.output import write_comparison, write_evaluation  # noqa: PLC0415 - loads matplotlib

        if isinstance(result, Comparison):
            write_comparison(result, evaluations, samples, out)
        else:
            write_evaluation(single, samples, out)
