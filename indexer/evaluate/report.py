"""Report: every figure of an evaluation and how it was come by; as JSON, and as a table for the terminal."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from indexer.encoder import EncoderSpec
from indexer.errors import BuildError
from indexer.evaluate.queries import Kind, Queries

REPORT_FILE, QUERIES_FILE = "report.json", "queries.npz"


class Unit(StrEnum):
    """What a figure counts in."""

    PART = "part"
    """Of all queries, 0 to 1; shown in percent."""
    TIMES = "times"
    DISTANCE = "distance"


class Frozen(BaseModel):
    """A part of a report: read-only, and nothing but what it says."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(Frozen):
    """One figure.

    Attributes:
        name: what programs call it.
        title: what people call it.
        value: in `unit`.
        interval: of 95 % confidence, by the cluster bootstrap; None where there are no two groups to draw from.
        queries: how many it is the mean of; None if it is none.
    """

    name: str
    title: str
    unit: Unit
    value: float
    interval: tuple[float, float] | None
    queries: int | None


class Section(Frozen):
    """The figures of one task, and its protocol in words."""

    title: str
    protocol: str
    figures: tuple[Figure, ...]


class SweepPoint(Frozen):
    """Accuracy (0 to 1) of the k-NN vote with other settings."""

    k: int
    temperature: float
    accuracy: float


class Confusion(Frozen):
    """How often pictures of each class (row) were taken for each class (column).

    Of `classes` in all: those with the most errors, where there are too many to show.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    classes: int


class Hit(Frozen):
    """One answer to an example query."""

    picture: str
    label: str | None
    right: bool


class Example(Frozen):
    """A query with its first hits.

    Attributes:
        kind: of the query.
        standing: "best", "median" or "worst".
        query: name of the picture, or the caption.
        label: of the picture.
        score: average precision of a picture; rank of the first right answer to a caption.
        hits: the first ones, the query itself left out.
    """

    kind: Kind
    standing: str
    query: str
    label: str | None
    score: float
    hits: tuple[Hit, ...]


class Report(Frozen):
    """What an encoder is worth on a set of pictures.

    Attributes:
        model: what it is called here.
        encoder: its identity.
        data: what the set of pictures is called.
        pictures: how many were decoded and count.
        skipped: how many could not be decoded.
        groups: what the bootstrap draws, in words.
        sections: the tasks, each with its figures.
        absent: why other tasks have no figures, by title.
        curve: mean interpolated precision of image-to-image at recall 0, 0.01, ..., 1; empty without that task.
        sweep: of the k-NN vote.
        confusion: of the k-NN vote.
        examples: queries with their first hits.
    """

    model: str
    encoder: EncoderSpec
    data: str
    pictures: int
    skipped: int
    groups: str
    sections: tuple[Section, ...]
    absent: dict[str, str]
    curve: tuple[float, ...] = ()
    sweep: tuple[SweepPoint, ...] = ()
    confusion: Confusion | None = None
    examples: tuple[Example, ...] = ()

    @property
    def figures(self) -> dict[str, Figure]:
        """Every figure, by name."""
        return {figure.name: figure for section in self.sections for figure in section.figures}

    def table(self) -> str:
        """Return all figures as lines of aligned text."""
        lines = [f"{self.model} on {self.data}: {self.pictures:,} pictures, {self.skipped:,} skipped"]
        width = max((len(figure.title) for figure in self.figures.values()), default=0)
        for section in self.sections:
            lines += ["", section.title]
            for figure in section.figures:
                queries = "" if figure.queries is None else f"{figure.queries:,} queries"
                value, interval = shown(figure.value, figure.unit), shown_interval(figure.interval, figure.unit)
                lines.append(f"  {figure.title:<{width}}  {value:>7}  {interval:<16}  {queries}".rstrip())
        if self.absent:
            lines += ["", "No figures"]
            lines += [f"  {title}: {reason}" for title, reason in self.absent.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Evaluation:
    """A report, and the values of the single queries that it sums up."""

    report: Report
    queries: Queries

    def save(self, folder: Path) -> None:
        """Write both into a folder that exists."""
        (folder / REPORT_FILE).write_text(self.report.model_dump_json(indent=1), encoding="utf-8")
        self.queries.save(folder / QUERIES_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            BuildError: a file is missing, damaged, or something else.
        """
        path = folder / REPORT_FILE
        try:
            report = Report.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise BuildError(f"{path} is no report of an evaluation: {error}") from error
        return cls(report, Queries.load(folder / QUERIES_FILE))


def shown(value: float, unit: Unit) -> str:
    """Return a value as people read it; a part in percent, without the sign."""
    return {Unit.PART: f"{100 * value:.1f}", Unit.TIMES: f"{value:.2f}x", Unit.DISTANCE: f"{value:.3f}"}[unit]


def shown_difference(value: float, unit: Unit) -> str:
    """Return a difference of two values as people read it, with its sign."""
    return f"{'-' if value < 0 else '+'}{shown(abs(value), unit)}"


def shown_interval(interval: tuple[float, float] | None, unit: Unit) -> str:
    """Return an interval as people read it; nothing for none."""
    return "" if interval is None else f"[{shown(interval[0], unit)}, {shown(interval[1], unit)}]"
