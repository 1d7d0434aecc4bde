"""Tasks of both halves: zero-shot classification, captions and pictures looked for by each other, the modality gap."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from indexer.evaluate.classification import nearest_class
from indexer.evaluate.metrics import modality_gap
from indexer.evaluate.prompts import class_vectors, description_vectors
from indexer.evaluate.queries import Kind, PerQuery
from indexer.evaluate.report import Example, Hit, Unit
from indexer.evaluate.retrieval import Rows, first_right_ranks, nearest
from indexer.evaluate.task import SHOWN_HITS, Absent, CaptionChoice, Measure, Outcome, Subject, pick_examples

_DEPTHS = (1, 5, 10)
_NO_CAPTIONS = Absent("No picture has a caption.")
_ONE_CAPTION = Absent("All captions are the same.")


def zero_shot(subject: Subject) -> Outcome | Absent:
    """Classify by prompts made from the names of the classes."""
    templates = subject.options.templates
    protocol = (
        "A picture is of the class whose vector is nearest: the normalised mean of the embeddings of "
        f"{len(templates)} prompts, such as {templates[0]!r}."
    )
    return _classified(
        subject, "zero_shot_accuracy", protocol, lambda names: class_vectors(subject.encoder, names, templates)
    )


def zero_shot_by_description(subject: Subject) -> Outcome | Absent:
    """Classify by descriptions of the classes."""
    given = subject.options.descriptions or {}
    protocol = (
        "A picture is of the class with the highest mean similarity to the texts '{class}, which has {description}' "
        f"(Menon and Vondrick, 2023); {sum(map(len, given.values())):,} descriptions of {len(given):,} classes."
    )
    return _classified(
        subject,
        "zero_shot_description_accuracy",
        protocol,
        lambda names: description_vectors(subject.encoder, names, given),
    )


def text_to_image(subject: Subject) -> Outcome | Absent:
    """Look for pictures by caption."""
    captions, pictures = subject.captions, subject.instances
    if len(captions.texts) < 2:  # noqa: PLR2004 - one is no choice
        return _ONE_CAPTION if len(captions.texts) else _NO_CAPTIONS
    ranks = first_right_ranks(captions.embeddings, pictures.embeddings, captions.pictures)
    protocol = (
        f"Each of the {len(captions.texts):,} different captions ({_which(subject)}) queries all "
        f"{len(pictures.names):,} pictures; right are those that carry this very caption. R@k: how often one of them "
        "is among the first k. Where no two pictures share a caption, this is the protocol of COCO and Flickr30k."
    )
    rows = np.arange(len(ranks))
    return Outcome(protocol, _recalls("text_to_image", Kind.CAPTION, rows, ranks), examples=_examples(subject, ranks))


def image_to_text(subject: Subject) -> Outcome | Absent:
    """Look for captions by picture."""
    captions, pictures = subject.captions, subject.instances
    if len(captions.texts) < 2:  # noqa: PLR2004 - one is no choice
        return _ONE_CAPTION if len(captions.texts) else _NO_CAPTIONS
    rows = _captioned(subject)
    right = [captions.of_picture[row] for row in rows]
    ranks = first_right_ranks(pictures.embeddings[rows], captions.embeddings, right)
    protocol = (
        f"Each of the {len(rows):,} pictures with a caption queries the {len(captions.texts):,} different captions "
        f"({_which(subject)}). R@k: how often one of its own is among the first k."
    )
    return Outcome(protocol, _recalls("image_to_text", Kind.PICTURE, rows, ranks))


def gap(subject: Subject) -> Outcome | Absent:
    """Measure how far apart pictures and captions lie."""
    captions = subject.captions
    if not len(captions.texts):
        return _NO_CAPTIONS
    rows = _captioned(subject)
    texts = captions.embeddings[np.concatenate([captions.of_picture[row] for row in rows])]
    value = modality_gap(subject.instances.embeddings[rows], texts)
    protocol = (
        f"Squared distance of the mean of {len(rows):,} image embeddings and the mean of their {len(texts):,} caption "
        f"embeddings ({_which(subject)}); 0 means that they lie in the same place."
    )
    return Outcome(protocol, (Measure("modality_gap", "Squared distance", value, Unit.DISTANCE),))


def _classified(
    subject: Subject, figure: str, protocol: str, vectors: Callable[[Sequence[str]], NDArray[np.float32]]
) -> Outcome | Absent:
    pictures, column = subject.classes, subject.options.label_column
    classes = sorted(set(pictures.known()))
    if not classes:
        return Absent(f"No picture has a label (column {column!r}).")
    if len(classes) == 1:
        return Absent(f"All pictures have the same label (column {column!r}).")
    if all(name.isdecimal() for name in classes):
        return Absent(f"The labels (column {column!r}) are numbers, which no text encoder understands.")
    rows = pictures.rows()
    found = nearest_class(pictures.embeddings[rows], vectors(classes))
    right = np.array([classes[each] == pictures.labels[row] for each, row in zip(found, rows, strict=True)], np.float64)
    measure = Measure(figure, "Accuracy", PerQuery(Kind.PICTURE, rows, right))
    return Outcome(f"{protocol} {len(classes):,} classes (column {column!r}).", (measure,))


def _recalls(name: str, kind: Kind, rows: Rows, ranks: Rows) -> tuple[Measure, ...]:
    return tuple(
        Measure(f"{name}_r{depth}", f"R@{depth}", PerQuery(kind, rows, (ranks <= depth).astype(np.float64)))
        for depth in _DEPTHS
    )


def _captioned(subject: Subject) -> Rows:
    return np.flatnonzero([len(rows) > 0 for rows in subject.captions.of_picture])


def _which(subject: Subject) -> str:
    first = subject.options.captions is CaptionChoice.FIRST
    return "the first of each picture" if first else "all of each picture"


def _examples(subject: Subject, ranks: Rows) -> tuple[Example, ...]:
    captions, pictures = subject.captions, subject.instances
    picked = pick_examples(1 / ranks, captions.texts, subject.options.examples)
    chosen = [(standing, row) for standing, rows in picked.items() for row in rows]
    queries = captions.embeddings[[row for _, row in chosen]] if chosen else captions.embeddings[:0]
    depth = min(SHOWN_HITS, len(pictures.names))
    found = nearest(queries, pictures.embeddings, np.full(len(queries), -1), depth)
    return tuple(
        Example(
            kind=Kind.CAPTION,
            standing=standing,
            query=captions.texts[row],
            label=None,
            score=float(ranks[row]),
            hits=tuple(
                Hit(picture=pictures.names[each], label=pictures.labels[each], right=each in captions.pictures[row])
                for each in near
            ),
        )
        for (standing, row), near in zip(chosen, found.rows, strict=True)
    )
