"""What every task of an evaluation is given, and what it hands back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from indexer.encoder import Embeddings, Encoder
from indexer.evaluate.bootstrap import RESAMPLES
from indexer.evaluate.prompts import TEMPLATES
from indexer.evaluate.queries import PerQuery
from indexer.evaluate.report import Confusion, Example, SweepPoint, Unit
from indexer.evaluate.retrieval import Rows
from indexer.samples import LABEL

SHOWN_HITS = 8
"""Of an example query."""


class CaptionChoice(StrEnum):
    """Which captions of a picture count."""

    FIRST = "first"
    ALL = "all"


@dataclass(frozen=True)
class EvaluateOptions:
    """How to evaluate.

    Attributes:
        model: what the model is called in the report; None means its own name.
        data: what the pictures are called in the report.
        label_column: the class of a picture, for k-NN and zero-shot.
        instance_column: what image-to-image looks for, and what the bootstrap draws; None means the label column.
        with_self: whether an image-to-image query stays among the answers and counts as a hit.
        gpr1200: whether the labels are GPR1200's class numbers, so that its domains have figures of their own.
        captions: which captions of a picture count.
        templates: prompts for zero-shot classification, with `{}` for the class.
        descriptions: texts on what a class looks like, by class, for zero-shot classification by description.
        index: FAISS factory string of an index whose recall is measured.
        examples: how many best, median and worst queries to show.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    model: str | None = None
    data: str = "pictures"
    label_column: str = LABEL
    instance_column: str | None = None
    with_self: bool = True
    gpr1200: bool = False
    captions: CaptionChoice = CaptionChoice.ALL
    templates: tuple[str, ...] = TEMPLATES
    descriptions: Mapping[str, Sequence[str]] | None = None
    index: str | None = None
    examples: int = 3
    resamples: int = RESAMPLES
    seed: int = 0

    @property
    def instances(self) -> str:
        """The column of what image-to-image looks for."""
        return self.instance_column or self.label_column


@dataclass(frozen=True)
class Labelled:
    """Pictures with names and labels, by row of `embeddings`, shape (n, dim)."""

    embeddings: Embeddings
    names: Sequence[str]
    labels: Sequence[str | None]

    def rows(self) -> Rows:
        """Return the rows that have a label."""
        return np.flatnonzero([label is not None for label in self.labels])

    def known(self) -> list[str]:
        """Return the labels of `rows()`."""
        return [label for label in self.labels if label is not None]


@dataclass(frozen=True)
class Captions:
    """The distinct captions of a set of pictures, in the order in which they first appear.

    Attributes:
        texts: m of them.
        embeddings: shape (m, dim).
        of_picture: for each picture the rows of its captions, possibly none.
        pictures: for each caption the rows of the pictures that carry it, at least one.
    """

    texts: Sequence[str]
    embeddings: Embeddings
    of_picture: Sequence[Rows]
    pictures: Sequence[Rows]


@dataclass(frozen=True)
class Subject:
    """An encoder and the pictures that it is evaluated on.

    Attributes:
        encoder: whose texts stand for classes.
        classes: the pictures with their classes.
        instances: the same pictures with their instances.
        gallery: the pictures that vote; None means the pictures themselves.
        captions: of the pictures.
        options: how to evaluate.
    """

    encoder: Encoder
    classes: Labelled
    instances: Labelled
    gallery: Labelled | None
    captions: Captions
    options: EvaluateOptions


@dataclass(frozen=True)
class Measure:
    """A figure on its way: a value, or what it is the mean of."""

    name: str
    title: str
    found: PerQuery | float
    unit: Unit = Unit.PART

    @property
    def value(self) -> float:
        """The figure itself."""
        return self.found if isinstance(self.found, float) else float(self.found.values.mean())


@dataclass(frozen=True)
class Outcome:
    """The figures of one task and its protocol in words; the rest as `Report` holds it."""

    protocol: str
    measures: tuple[Measure, ...]
    curve: tuple[float, ...] = ()
    sweep: tuple[SweepPoint, ...] = ()
    confusion: Confusion | None = None
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Absent:
    """Why a task has no figures."""

    reason: str


def numbered(labels: Sequence[str | None], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return each label's place among the classes, or -1 for None."""
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([-1 if label is None else numbers[label] for label in labels], np.int64)


def pick_examples(values: NDArray[np.float64], groups: Sequence[str], count: int) -> dict[str, list[int]]:
    """Choose the best, median and worst queries, of different groups, none twice.

    Args:
        values: of each query, the more the better.
        groups: of each query.
        count: how many of each standing, where there are so many groups.
    """
    order = np.argsort(-values, kind="stable").tolist()
    middle = sorted(range(len(order)), key=lambda place: abs(place - len(order) // 2))
    walks = {"best": order, "worst": order[::-1], "median": [order[place] for place in middle]}
    taken: set[str] = set()
    picked: dict[str, list[int]] = {}
    for standing, walk in walks.items():
        picked[standing] = []
        for query in walk:
            if len(picked[standing]) < count and groups[query] not in taken:
                picked[standing].append(query)
                taken.add(groups[query])
    return {standing: picked[standing] for standing in ("best", "median", "worst")}
