"""Tasks of the image half: image-to-image retrieval, the k-NN vote, and what an approximate index loses."""

import numpy as np
from numpy.typing import NDArray

from indexer.errors import BuildError
from indexer.evaluate.classification import SWEEP_K, SWEEP_TEMPERATURES, TEMPERATURE, K, vote_all
from indexer.evaluate.index_recall import IndexRecall, index_recall
from indexer.evaluate.metrics import confusion_matrix
from indexer.evaluate.queries import Kind, PerQuery
from indexer.evaluate.report import Confusion, Example, Hit, SweepPoint, Unit
from indexer.evaluate.retrieval import ImageToImage, Rows, nearest
from indexer.evaluate.retrieval import image_to_image as retrieve
from indexer.evaluate.task import (
    SHOWN_HITS,
    Absent,
    Labelled,
    Measure,
    Outcome,
    Subject,
    numbered,
    pick_examples,
)
from indexer.index import DEPTH
from indexer.index_building import build_index
from indexer.index_policy import resolve_factory

GPR1200_DOMAINS = ("Landmarks", "iNaturalist", "ImageNet-Sketch", "INSTRE", "SOP", "IMDB faces")
_GPR1200_CLASSES = 1_200
_SHOWN_CLASSES = 30


def image_to_image(subject: Subject) -> Outcome | Absent:
    """Look for pictures of the same instance by a picture."""
    pictures, options = subject.instances, subject.options
    column = options.instances
    classes = sorted(set(pictures.known()))
    if not classes:
        return Absent(f"No picture has a label (column {column!r}).")
    found = retrieve(pictures.embeddings, numbered(pictures.labels, classes), with_self=options.with_self)
    if not len(found.accompanied):
        return Absent(f"No two pictures have the same label (column {column!r}).")
    measures = (
        Measure("image_to_image_map", "mAP", PerQuery(Kind.PICTURE, found.queries, found.average_precision)),
        Measure("image_to_image_r1", "R@1", PerQuery(Kind.PICTURE, found.accompanied, found.r1)),
        Measure("image_to_image_r5", "R@5", PerQuery(Kind.PICTURE, found.accompanied, found.r5)),
    )
    domains = _domains(subject, found) if options.gpr1200 and len(classes) == _GPR1200_CLASSES else ()
    return Outcome(
        _image_to_image_protocol(subject, found, len(classes)),
        measures + domains,
        curve=tuple(found.curve.tolist()),
        examples=_examples(pictures, found, options.examples),
    )


def knn(subject: Subject) -> Outcome | Absent:
    """Classify by the vote of the nearest labelled pictures."""
    queries, gallery = _without_unlabelled(subject.classes), _without_unlabelled(subject.gallery or subject.classes)
    column = subject.options.label_column
    if not queries.labels or not gallery.labels:
        who = "gallery " if queries.labels else ""
        return Absent(f"No {who}picture has a label (column {column!r}).")
    if len(set(gallery.labels)) == 1:
        return Absent(f"All pictures that vote have the same label (column {column!r}).")
    classes = sorted({*queries.known(), *gallery.known()})
    places = {name: row for row, name in enumerate(gallery.names)}
    own = np.array([places.get(name, -1) for name in queries.names], np.int64)
    reach = len(gallery.names) - bool((own >= 0).any())
    k = min(K, reach)
    found = nearest(queries.embeddings, gallery.embeddings, own, min(max(SWEEP_K), reach))
    truth, voters = numbered(queries.labels, classes), numbered(gallery.labels, classes)

    def predicted(k: int, temperature: float) -> NDArray[np.int64]:
        return vote_all(voters[found.rows[:, :k]], found.scores[:, :k], classes, temperature)

    winners = predicted(k, TEMPERATURE)
    sweep = tuple(
        SweepPoint(k=each, temperature=temperature, accuracy=float((predicted(each, temperature) == truth).mean()))
        for temperature in SWEEP_TEMPERATURES
        for each in SWEEP_K
        if each <= reach
    )
    right = PerQuery(Kind.PICTURE, subject.classes.rows(), (winners == truth).astype(np.float64))
    return Outcome(
        _knn_protocol(subject, queries, gallery, k),
        (Measure("knn_accuracy", "Accuracy", right),),
        sweep=sweep,
        confusion=_confusion(truth, winners, classes),
    )


def approximate_index(subject: Subject) -> Outcome | Absent:
    """Compare an approximate index with exact search, by picture and by caption."""
    embeddings = subject.classes.embeddings
    factory = resolve_factory(str(subject.options.index), *embeddings.shape)
    try:
        index = build_index(embeddings, factory)
    except BuildError as error:
        return Absent(str(error))
    by_picture = index_recall(index, embeddings, embeddings)
    title = f"Recall@{DEPTH}"
    measures = [Measure("index_recall_pictures", f"{title} by picture", _recall(Kind.PICTURE, by_picture))]
    if len(subject.captions.texts):
        by_caption = index_recall(index, embeddings, subject.captions.embeddings)
        measures.append(Measure("index_recall_captions", f"{title} by caption", _recall(Kind.CAPTION, by_caption)))
    speedup = by_picture.exact_milliseconds / by_picture.milliseconds
    measures.append(Measure("index_speedup", "Speed against exact", speedup, Unit.TIMES))
    protocol = (
        f"FAISS index {factory} with its default search parameters, over {len(embeddings):,} embeddings, against exact "
        f"search; at most 1,000 queries of a kind, the query left in. An answer counts if it is as near as number "
        f"{DEPTH} of the exact ones. Speed: median processor time of exact searches by picture over that of this index."
    )
    return Outcome(protocol, tuple(measures))


def _recall(kind: Kind, found: IndexRecall) -> PerQuery:
    return PerQuery(kind, found.queries, found.recall)


def _image_to_image_protocol(subject: Subject, found: ImageToImage, classes: int) -> str:
    options = subject.options
    alone = len(subject.instances.rows()) - len(found.accompanied)
    without = f" and without the {alone:,} pictures that are alone with their label" if alone else ""
    if options.with_self:
        who = "the query stays in the list and counts as a hit (the protocol of GPR1200 and INSTRE)"
    else:
        who = f"with the query left out{without}"
    words = (
        f"Every picture with a label (column {options.instances!r}, {classes:,} different) queries all "
        f"{len(subject.instances.names):,} pictures; {who}. AP = 1/R x the sum over the R hits of (hits so far / rank) "
        "over the whole list, mAP is its mean; equal similarities keep the order of the pictures. R@1, R@5: how often "
        f"the first one, five, hold a hit, always with the query left out{without} (the protocol of CUB)."
    )
    if not options.gpr1200:
        return words
    if classes != _GPR1200_CLASSES:
        return f"{words} No figures by domain: GPR1200 has 1,200 classes, this set {classes:,}."
    return (
        f"{words} Domains: 200 classes each, in the order of their numbers; GPR1000 is the mean of all but the faces."
    )


def _domains(subject: Subject, found: ImageToImage) -> tuple[Measure, ...]:
    """Return GPR1200's mAP by domain, and GPR1000."""
    numbers = np.array([int(str(subject.instances.labels[row])) for row in found.queries])
    place = np.unique(numbers, return_inverse=True)[1] // (_GPR1200_CLASSES // len(GPR1200_DOMAINS))
    measures = []
    for number, domain in enumerate(GPR1200_DOMAINS):
        rows, values = found.queries[place == number], found.average_precision[place == number]
        name = f"gpr1200_{domain.lower().replace('-', '_').replace(' ', '_')}_map"
        measures.append(Measure(name, f"mAP, {domain}", PerQuery(Kind.PICTURE, rows, values)))
    without_faces = place < len(GPR1200_DOMAINS) - 1
    kept = place[without_faces]
    # Weighted, so that the mean over the queries is the mean over the domains even where a picture was unreadable.
    weights = len(kept) / (len(GPR1200_DOMAINS) - 1) / np.bincount(kept)[kept]
    values = found.average_precision[without_faces] * weights
    measures.append(
        Measure("gpr1000_map", "mAP, GPR1000", PerQuery(Kind.PICTURE, found.queries[without_faces], values))
    )
    return tuple(measures)


def _examples(pictures: Labelled, found: ImageToImage, count: int) -> tuple[Example, ...]:
    """Show the best, median and worst of the queries that could find another picture."""
    values = found.average_precision[np.isin(found.queries, found.accompanied)]
    groups = [str(pictures.labels[row]) for row in found.accompanied]
    picked = pick_examples(values, groups, count)
    chosen = [(standing, query) for standing, queries in picked.items() for query in queries]
    rows: Rows = found.accompanied[[query for _, query in chosen]] if chosen else np.empty(0, np.int64)
    hits = nearest(pictures.embeddings[rows], pictures.embeddings, rows, min(SHOWN_HITS, len(pictures.names) - 1))
    return tuple(
        Example(
            kind=Kind.PICTURE,
            standing=standing,
            query=pictures.names[row],
            label=pictures.labels[row],
            score=float(values[query]),
            hits=tuple(_hit(pictures, each, right=pictures.labels[each] == pictures.labels[row]) for each in near),
        )
        for (standing, query), row, near in zip(chosen, rows, hits.rows, strict=True)
    )


def _hit(pictures: Labelled, row: int, *, right: bool) -> Hit:
    return Hit(picture=pictures.names[row], label=pictures.labels[row], right=right)


def _without_unlabelled(pictures: Labelled) -> Labelled:
    rows = pictures.rows()
    return Labelled(pictures.embeddings[rows], [pictures.names[row] for row in rows], pictures.known())


def _knn_protocol(subject: Subject, queries: Labelled, gallery: Labelled, k: int) -> str:
    strange = sum(label not in set(gallery.labels) for label in queries.labels)
    who = "the other pictures" if subject.gallery is None else f"a gallery of {len(gallery.names):,} pictures"
    words = (
        f"The {k} nearest of {who} vote for their label (column {subject.options.label_column!r}), a neighbour of "
        f"cosine similarity s with weight exp(s / {TEMPERATURE})"
    )
    words += "." if k == K else f"; the protocol's {K} are more than there are."
    return f"{words} {strange:,} queries have a label that no voter has, and count as wrong." if strange else words


def _confusion(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: list[str]) -> Confusion:
    counts = confusion_matrix(truth, predicted, len(classes))
    errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    shown = np.sort(np.argsort(-errors, kind="stable")[:_SHOWN_CLASSES])
    return Confusion(
        labels=tuple(classes[row] for row in shown),
        counts=tuple(tuple(row) for row in counts[np.ix_(shown, shown)].tolist()),
        classes=len(classes),
    )
