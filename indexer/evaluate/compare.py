"""compare(): several models side by side, on the same queries, each against the first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.errors import BuildError
from indexer.evaluate.bootstrap import RESAMPLES, interval, resampled_means
from indexer.evaluate.queries import Grouped, Kind
from indexer.evaluate.report import Evaluation, Frozen, Unit, shown, shown_difference, shown_interval

HEADLINES = {
    "image_to_image_map": "I2I mAP",
    "knn_accuracy": "k-NN",
    "zero_shot_accuracy": "Zero-shot",
    "text_to_image_r5": "T2I R@5",
}
"""The columns of the paper's table 1 (Schall et al., SISAP 2024)."""

AVERAGE = "average"


class Column(Frozen):
    """A figure that all models have: its name for programs and its title for people."""

    name: str
    title: str
    unit: Unit


class Cell(Frozen):
    """One figure of one model.

    Attributes:
        value: the mean over its seeds.
        interval: of 95 % confidence, for other queries of the same kind.
        seeds: the value of each seed.
        spread: standard deviation over the seeds; None for one seed.
        difference: to the first model; None for the first.
        difference_interval: of 95 % confidence, on the same queries.
    """

    value: float
    interval: tuple[float, float] | None
    seeds: tuple[float, ...]
    spread: float | None
    difference: float | None
    difference_interval: tuple[float, float] | None


class Row(Frozen):
    """One model: a cell for each column, and the precision-recall curve of `Report`, the mean over its seeds."""

    model: str
    cells: tuple[Cell, ...]
    curve: tuple[float, ...]


class Comparison(Frozen):
    """Models side by side.

    Attributes:
        data: what the pictures are called.
        pictures: how many count.
        groups: what the bootstrap draws, in words.
        columns: the paper's and their average, then all other figures that every model has.
        headlines: how many columns are the paper's, with their average.
        rows: the models.
        protocols: of each task, in words, by title.
    """

    data: str
    pictures: int
    groups: str
    columns: tuple[Column, ...]
    headlines: int
    rows: tuple[Row, ...]
    protocols: dict[str, str]

    def table(self, *, every: bool = False) -> str:
        """Return the values and the differences as lines of aligned text: the paper's columns, or every one."""
        return "\n\n".join(_aligned(grid) for grid in self._grids(every=every))

    def markdown(self, *, every: bool = False) -> str:
        """Return the same as tables in Markdown."""
        return "\n\n".join(_markdown(grid) for grid in self._grids(every=every))

    def _grids(self, *, every: bool) -> list[list[list[str]]]:
        columns = self.columns if every else self.columns[: self.headlines]
        titles = [column.title for column in columns]
        values, differences = [["", *titles]], [[f"less {self.rows[0].model}", *titles]]
        for row in self.rows:
            pairs = list(zip(row.cells, columns, strict=False))
            values.append([row.model, *(shown_cell(cell, column.unit) for cell, column in pairs)])
            differences.append([row.model, *(shown_cell_difference(cell, column.unit) for cell, column in pairs)])
        return [values] if len(self.rows) == 1 else [values, [differences[0], *differences[2:]]]


@dataclass(frozen=True)
class _Found:
    """The figures of one model by column: the value of each seed, and the resampled means where there are groups."""

    values: dict[str, NDArray[np.float64]]
    draws: dict[str, NDArray[np.float64]]


def compare(models: Mapping[str, Sequence[Evaluation]], resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Put models side by side on the figures that all of them have.

    The values of a query are averaged over the seeds of a model before groups of queries are drawn; what the seeds
    themselves differ by is the spread. All models see the same draws, so the differences are paired.

    Args:
        models: by name, the first being what the others are compared with; of each the evaluations of its seeds.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        BuildError: there is no evaluation, or they are not of the same queries by the same protocol.
    """
    everything = [each for seeds in models.values() for each in seeds]
    if not everything or not all(models.values()):
        raise BuildError("A comparison needs at least one evaluation of each model.")
    first = everything[0]
    for each in everything[1:]:
        _check_comparable(first, each)
    columns, headlines = _columns(everything)
    draws = _draws(models, [column.name for column in columns], headlines, resamples, seed)
    found = {name: _Found(_values(seeds, columns), draws[name]) for name, seeds in models.items()}
    base = next(iter(models))
    rows = []
    for name, seeds in models.items():
        against = None if name == base else found[base]
        cells = [_cell(column.name, found[name], against) for column in columns]
        curve = np.mean([each.report.curve for each in seeds], axis=0)
        rows.append(Row(model=name, cells=tuple(cells), curve=tuple(curve.tolist())))
    return Comparison(
        data=first.report.data,
        pictures=first.report.pictures,
        groups=first.report.groups,
        columns=tuple(columns),
        headlines=headlines,
        rows=tuple(rows),
        protocols={section.title: section.protocol for section in first.report.sections},
    )


def shown_cell(cell: Cell, unit: Unit) -> str:
    """Return a value with its spread over seeds and its interval."""
    spread = "" if cell.spread is None else f" ± {shown(cell.spread, unit)}"
    return f"{shown(cell.value, unit)}{spread} {shown_interval(cell.interval, unit)}".rstrip()


def shown_cell_difference(cell: Cell, unit: Unit) -> str:
    """Return a difference with its interval; nothing for the first model."""
    if cell.difference is None:
        return ""
    words = shown_difference(cell.difference, unit)
    if cell.difference_interval is None:
        return words
    low, high = cell.difference_interval
    return f"{words} [{shown_difference(low, unit)}, {shown_difference(high, unit)}]"


def _check_comparable(first: Evaluation, other: Evaluation) -> None:
    names = f"{first.report.model} and {other.report.model}"
    for kind in Kind:
        ours, theirs = first.queries.asked[kind], other.queries.asked[kind]
        if not (np.array_equal(ours.names, theirs.names) and np.array_equal(ours.groups, theirs.groups)):
            raise BuildError(
                f"{names} were not evaluated on the same {kind}s; only figures of the same are comparable."
            )
    protocols = {section.title: section.protocol for section in first.report.sections}
    for section in other.report.sections:
        if protocols.get(section.title, section.protocol) != section.protocol:
            raise BuildError(
                f"{names} were evaluated by different protocols. {section.title}: {protocols[section.title]} "
                f"As against: {section.protocol}"
            )


def _columns(evaluations: Sequence[Evaluation]) -> tuple[list[Column], int]:
    """Return the columns of the figures that all evaluations have, and how many of them are the paper's."""
    figures = {
        figure.name: Column(name=figure.name, title=f"{section.title}: {figure.title}", unit=figure.unit)
        for section in evaluations[0].report.sections
        for figure in section.figures
        if all(figure.name in each.report.figures for each in evaluations)
    }
    headlines = [Column(name=name, title=title, unit=Unit.PART) for name, title in HEADLINES.items() if name in figures]
    if len(headlines) > 1:
        headlines.append(Column(name=AVERAGE, title="AVG", unit=Unit.PART))
    others = [column for name, column in figures.items() if name not in HEADLINES]
    return headlines + others, len(headlines)


def _values(seeds: Sequence[Evaluation], columns: Sequence[Column]) -> dict[str, NDArray[np.float64]]:
    """Return each column's value for each seed; the average is of the columns before it."""
    values: dict[str, NDArray[np.float64]] = {}
    for column in columns:
        if column.name == AVERAGE:
            values[AVERAGE] = np.mean(list(values.values()), axis=0)
        else:
            values[column.name] = np.array([each.report.figures[column.name].value for each in seeds])
    return values


def _draws(
    models: Mapping[str, Sequence[Evaluation]], columns: Sequence[str], headlines: int, resamples: int, seed: int
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return the resampled means, shape (resamples,), of each model's columns that are means over several groups."""
    grouped = [[Grouped(each.queries) for each in seeds] for seeds in models.values()]
    present = next(iter(models.values()))[0].queries.values
    counts = {name: grouped[0][0].counts(name) for name in columns if name in present}
    figures = [name for name, each in counts.items() if (each > 0).sum() > 1]
    if not figures:
        return {name: {} for name in models}
    sums = [np.mean([each.sums(figure) for each in seeds], axis=0) for seeds in grouped for figure in figures]
    tiled = np.tile([counts[figure] for figure in figures], (len(models), 1))
    means = resampled_means(np.stack(sums), tiled, resamples, seed).reshape(resamples, len(models), len(figures))
    draws = {
        name: {figure: means[:, row, column] for column, figure in enumerate(figures)}
        for row, name in enumerate(models)
    }
    averaged = [name for name in columns[:headlines] if name != AVERAGE]
    if AVERAGE in columns and all(name in figures for name in averaged):
        for each in draws.values():
            each[AVERAGE] = np.mean([each[name] for name in averaged], axis=0)
    return draws


def _cell(column: str, found: _Found, base: _Found | None) -> Cell:
    values, draws = found.values[column], found.draws.get(column)
    value = float(values.mean())
    return Cell(
        value=value,
        interval=None if draws is None else interval(draws),
        seeds=tuple(values.tolist()),
        spread=float(values.std(ddof=1)) if len(values) > 1 else None,
        difference=None if base is None else value - float(base.values[column].mean()),
        difference_interval=None if base is None or draws is None else interval(draws - base.draws[column]),
    )


def _aligned(grid: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in grid
    )


def _markdown(grid: Sequence[Sequence[str]]) -> str:
    head, *lines = [[cell.replace("|", "\\|") for cell in line] for line in grid]
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
