"""evaluate(): encode the pictures, do every task, sum up."""

import itertools
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from indexer.encoder import Encoder
from indexer.errors import EncoderError
from indexer.evaluate.bootstrap import interval, resampled_means
from indexer.evaluate.image_tasks import approximate_index, image_to_image, knn
from indexer.evaluate.prompts import encode_texts
from indexer.evaluate.queries import Asked, Grouped, Kind, PerQuery, Queries, texts
from indexer.evaluate.report import Evaluation, Figure, Report, Section
from indexer.evaluate.task import (
    Absent,
    CaptionChoice,
    Captions,
    EvaluateOptions,
    Labelled,
    Outcome,
    Subject,
)
from indexer.evaluate.text_tasks import gap, image_to_text, text_to_image, zero_shot, zero_shot_by_description
from indexer.index_policy import check_index
from indexer.progress import Reporter
from indexer.samples import Encoded, Samples, encode_samples

Task = Callable[[Subject], Outcome | Absent]


def evaluate(
    encoder: Encoder,
    samples: Samples,
    options: EvaluateOptions,
    gallery: Samples | None = None,
    progress: Reporter | None = None,
) -> Evaluation:
    """Encode pictures and evaluate the encoder on them.

    Args:
        encoder: to evaluate.
        samples: the pictures that are queries, and, but for `gallery`, the answers.
        options: how to evaluate.
        gallery: pictures that vote in the k-NN vote; None means the others of `samples`.
        progress: is told how far the encoding has come.

    Raises:
        BuildError: no picture can be used, or the options do not fit the pictures.
    """
    check(options, samples, gallery, encoder)
    encoded = encode_samples(samples, encoder, progress)
    voters = None if gallery is None else encode_samples(gallery, encoder, progress)
    return evaluate_encoded(encoder, encoded, options, voters)


def check(options: EvaluateOptions, samples: Samples, gallery: Samples | None, encoder: Encoder) -> None:
    """Find what cannot work before hours of encoding.

    Raises:
        BuildError: no picture has a column of the options, or FAISS does not know the index.
    """
    for pictures in (samples,) if gallery is None else (samples, gallery):
        pictures.column(options.label_column)
    samples.column(options.instances)
    if options.index is not None:
        check_index(options.index, encoder.spec.dim)


def evaluate_encoded(
    encoder: Encoder, encoded: Encoded, options: EvaluateOptions, gallery: Encoded | None = None
) -> Evaluation:
    """Evaluate an encoder on pictures that its image half has encoded already.

    Raises:
        BuildError: the options do not fit the pictures.
        EncoderError: embeddings hold infinity or NaN, as those of a training that diverged do.
    """
    for each in (encoded,) if gallery is None else (encoded, gallery):
        if not np.isfinite(each.embeddings).all():
            raise EncoderError(f"The encoder {encoder.spec.name} makes embeddings that are no numbers.")
    subject = _subject(encoder, encoded, options, gallery)
    found = {title: task(subject) for title, task in _tasks(options).items()}
    outcomes = {title: each for title, each in found.items() if isinstance(each, Outcome)}
    queries = _queries(subject, outcomes.values())
    intervals = _intervals(queries, options)
    report = Report(
        model=options.model or str(encoder.spec.name),
        encoder=encoder.spec,
        data=options.data,
        pictures=len(encoded.samples),
        skipped=len(encoded.skipped),
        groups=_groups_in_words(options),
        sections=tuple(_section(title, outcome, intervals) for title, outcome in outcomes.items()),
        absent={title: each.reason for title, each in found.items() if isinstance(each, Absent)},
        curve=next((each.curve for each in outcomes.values() if each.curve), ()),
        sweep=next((each.sweep for each in outcomes.values() if each.sweep), ()),
        confusion=next((each.confusion for each in outcomes.values() if each.confusion), None),
        examples=tuple(itertools.chain.from_iterable(each.examples for each in outcomes.values())),
    )
    return Evaluation(report, queries)


def _tasks(options: EvaluateOptions) -> Mapping[str, Task]:
    tasks: dict[str, Task] = {
        "Image to image": image_to_image,
        "k-NN classification": knn,
        "Zero-shot classification": zero_shot,
    }
    if options.descriptions is not None:
        tasks["Zero-shot classification by description"] = zero_shot_by_description
    tasks |= {"Text to image": text_to_image, "Image to text": image_to_text, "Modality gap": gap}
    if options.index is not None:
        tasks["Approximate index"] = approximate_index
    return tasks


def _subject(encoder: Encoder, encoded: Encoded, options: EvaluateOptions, gallery: Encoded | None) -> Subject:
    def labelled(those: Encoded, column: str) -> Labelled:
        return Labelled(those.embeddings, [sample.name for sample in those.samples], those.samples.column(column))

    return Subject(
        encoder=encoder,
        classes=labelled(encoded, options.label_column),
        instances=labelled(encoded, options.instances),
        gallery=None if gallery is None else labelled(gallery, options.label_column),
        captions=_captions(encoder, encoded.samples, options.captions),
        options=options,
    )


def _captions(encoder: Encoder, samples: Samples, choice: CaptionChoice) -> Captions:
    rows: dict[str, int] = {}
    of_picture: list[list[int]] = []
    for sample in samples:
        chosen = sample.captions[:1] if choice is CaptionChoice.FIRST else sample.captions
        of_picture.append([rows.setdefault(caption, len(rows)) for caption in dict.fromkeys(chosen)])
    pictures: list[list[int]] = [[] for _ in rows]
    for picture, carried in enumerate(of_picture):
        for caption in carried:
            pictures[caption].append(picture)
    return Captions(
        texts=list(rows),
        embeddings=encode_texts(encoder, list(rows)),
        of_picture=[np.array(each, np.int64) for each in of_picture],
        pictures=[np.array(each, np.int64) for each in pictures],
    )


def _queries(subject: Subject, outcomes: Iterable[Outcome]) -> Queries:
    measures = itertools.chain.from_iterable(outcome.measures for outcome in outcomes)
    found = {measure.name: measure.found for measure in measures if isinstance(measure.found, PerQuery)}
    return Queries(_asked(subject), found)


def _asked(subject: Subject) -> dict[Kind, Asked]:
    """Return all queries with their groups: the instance of a picture, else the picture itself."""
    instances, captions = subject.instances, subject.captions
    groups = [
        f"picture {name}" if label is None else f"label {label}"
        for name, label in zip(instances.names, instances.labels, strict=True)
    ]
    # A caption may be carried by pictures of several groups; the first of them has it.
    of_captions = [groups[pictures[0]] for pictures in captions.pictures]
    return {
        Kind.PICTURE: Asked(texts(instances.names), texts(groups)),
        Kind.CAPTION: Asked(texts(captions.texts), texts(of_captions)),
    }


def _groups_in_words(options: EvaluateOptions) -> str:
    return (
        f"Intervals: 95 %, from {options.resamples:,} resamples (seed {options.seed}) of whole groups of queries. A "
        f"group is all pictures of one label (column {options.instances!r}) with the captions that they are the first "
        "to carry; a picture without label is a group of its own."
    )


def _intervals(queries: Queries, options: EvaluateOptions) -> dict[str, tuple[float, float]]:
    """Return the confidence interval of each figure that has queries of two groups at least."""
    grouped, names = Grouped(queries), list(queries.values)
    if not names:
        return {}
    counts = np.stack([grouped.counts(name) for name in names])
    sums = np.stack([grouped.sums(name) for name in names])
    means = resampled_means(sums, counts, options.resamples, options.seed)
    return {name: interval(means[:, number]) for number, name in enumerate(names) if (counts[number] > 0).sum() > 1}


def _section(title: str, outcome: Outcome, intervals: Mapping[str, tuple[float, float]]) -> Section:
    figures = tuple(
        Figure(
            name=measure.name,
            title=measure.title,
            unit=measure.unit,
            value=measure.value,
            interval=intervals.get(measure.name),
            queries=len(measure.found.rows) if isinstance(measure.found, PerQuery) else None,
        )
        for measure in outcome.measures
    )
    return Section(title=title, protocol=outcome.protocol, figures=figures)
