"""Plots as SVG for an HTML page, and one for a file. The door to matplotlib.

Its objects are used directly, without pyplot and its state.

A plot has no background, and text and axes take the colour of the text around it, so that it suits light pages and dark
ones.
"""

import html
import io
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from indexer.recall import CurvePoint, Tuning
from indexer.relevance import Calibration, Confidence, Relevance

# Stands for the colour of the text around, which SVG calls currentColor and matplotlib has no word for.
_INK = "#010203"
# Of middling lightness, so that they are seen on white and on black.
_COLOURS = ("#3b82d0", "#d9762b", "#2a9d6f", "#c2569b", "#8a6fd1", "#9a8a1f")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_MOST_MARKED = 20
_MOST_NUMBERED = 30
_LONGEST_LABEL = 18

# matplotlib takes the options of its SVG writer from module-wide settings alone; they are set for one plot at a time.
_LOCK = threading.Lock()
_SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched, and takes the page's font
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 11,
}


@dataclass(frozen=True)
class Line:
    """One line of a plot: its points, at `x` (None means 1, 2, ...) and `y`."""

    y: Sequence[float]
    x: Sequence[float] | None = None


def curves(series: Mapping[str, Sequence[float]], title: str, xlabel: str, ylabel: str) -> str:
    """Return a plot of values in sequence, such as the losses of each step, as an SVG element."""
    return lines({name: Line(values) for name, values in series.items()}, title, xlabel, ylabel)


def lines(
    series: Mapping[str, Line],
    title: str,
    xlabel: str,
    ylabel: str,
    *,
    logarithmic: bool = False,
    ylimits: tuple[float, float] | None = None,
) -> str:
    """Return a plot of lines, told apart by colour and by dash, as an SVG element.

    Args:
        series: the lines, by name.
        title: also what the plot is called where it cannot be seen.
        xlabel: of the horizontal axis.
        ylabel: of the vertical axis.
        logarithmic: whether the horizontal axis is; it then has its ticks where there are points.
        ylimits: lowest and highest value shown; None fits the lines.
    """
    with _LOCK, mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)
        looks = zip(cycle(_COLOURS), cycle(_STYLES), cycle(_MARKERS), strict=False)
        for (name, line), (colour, style, marker) in zip(series.items(), looks, strict=False):
            x = range(1, len(line.y) + 1) if line.x is None else line.x
            marked = marker if len(line.y) <= _MOST_MARKED else None
            axes.plot(x, line.y, style, color=colour, marker=marked, markersize=5, label=_short(name, 40))
        if logarithmic:
            _ticks_at_points(axes, series)
        if ylimits:
            axes.set_ylim(*ylimits)
        axes.grid(color=_INK, alpha=0.15)
        if len(series) > 1:
            axes.legend(frameon=False)
        return _svg(figure, title, f"{title}: {ylabel} against {xlabel}; {', '.join(series)}.")


def matrix(labels: Sequence[str], counts: Sequence[Sequence[int]], title: str, xlabel: str, ylabel: str) -> str:
    """Return a square matrix of counts, each row shaded by its parts of the row, as an SVG element."""
    with _LOCK, mpl.rc_context(_SETTINGS):
        side = 2.4 + 0.32 * len(labels)
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)
        values = np.array(counts, np.float64)
        parts = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
        # From clear to a middling blue, on which ink of either theme is read.
        shades = LinearSegmentedColormap.from_list(
            "shades", [(*mpl.colors.to_rgb(_COLOURS[0]), part) for part in (0, 0.8)]
        )
        axes.pcolormesh(parts, cmap=shades, vmin=0, vmax=1, edgecolors=_INK, linewidth=0.1)
        names = [_short(label, _LONGEST_LABEL) for label in labels]
        axes.set_xticks(np.arange(len(labels)) + 0.5, names, rotation=90)
        axes.set_yticks(np.arange(len(labels)) + 0.5, names)
        axes.invert_yaxis()
        if len(labels) <= _MOST_NUMBERED:
            for row, column in np.argwhere(values):
                count = f"{int(values[row, column])}"
                axes.text(column + 0.5, row + 0.5, count, ha="center", va="center", fontsize=8)
        return _svg(figure, title, f"{title}: {ylabel} in rows, {xlabel} in columns; {len(labels)} classes.")


def draw_measured(tuning: Tuning | None, relevance: Relevance | None, title: str, file: Path) -> bool:
    """Draw what was measured of a snapshot into an SVG or PNG file, and tell whether there was anything to draw.

    Side by side: recall against milliseconds of a search, with the chosen points (settings are left out that another
    one beats in both); how often hits of a relevance are right; how often labels are, the fewer are given.
    """
    calibrations = _named(relevance) if relevance else {}
    votes = relevance.votes if relevance else None
    panels: list[Callable[[Axes], None]] = []
    if tuning:
        panels.append(partial(_recall, tuning))
    if calibrations:
        panels.append(partial(_reliability, calibrations))
    if votes:
        panels.append(partial(_coverage, votes))
    if not panels:
        return False
    with _LOCK, mpl.rc_context({**_SETTINGS, "svg.hashsalt": title}):
        figure = Figure(figsize=(6.4 * len(panels), 3.8), layout="constrained")
        figure.suptitle(_short(title, 60))
        for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw(axes)
            axes.grid(color=_INK, alpha=0.15)
            axes.legend(frameon=False)
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    return True


def _named(relevance: Relevance) -> dict[str, Calibration]:
    named = {"by text": relevance.text, "by picture": relevance.image}
    return {name: calibration for name, calibration in named.items() if calibration}


def _recall(measured: Tuning, axes: Axes) -> None:
    axes.set(xlabel="milliseconds of a search", ylabel="recall@10")
    for kind, colour, marker in zip((measured.text, measured.image), _COLOURS, _MARKERS, strict=False):
        name = "by text" if kind is measured.text else "by picture"
        best = _unbeaten(kind.curve)
        axes.plot([x for x, _ in best], [y for _, y in best], color=colour, marker=marker, markersize=4, label=name)
        chosen = kind.chosen
        axes.plot(chosen.milliseconds, chosen.recall, marker, color=colour, markersize=12, fillstyle="none")
    axes.axhline(measured.target_recall, color=_INK, linestyle=":", label=f"target {measured.target_recall:g}")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")  # powers of ten would be formulas
    axes.minorticks_off()


def _reliability(measured: Mapping[str, Calibration], axes: Axes) -> None:
    axes.set(xlabel="relevance of a hit", ylabel="part of such hits that is right", xlim=(0, 1), ylim=(0, 1.02))
    axes.axline((0, 0), slope=1, color=_INK, linestyle=":", label="as predicted")
    for (name, found), colour, marker in zip(measured.items(), _COLOURS, _MARKERS, strict=False):
        predicted, observed = zip(*((bin_.predicted, bin_.observed) for bin_ in found.reliability), strict=True)
        label = f"{name}, error {found.expected_calibration_error:.3f}"
        axes.plot(predicted, observed, color=colour, marker=marker, markersize=4, label=label)


def _coverage(measured: Confidence, axes: Axes) -> None:
    axes.set(xlabel="part of pictures that get a label", ylabel="part of labels that is right", xlim=(0, 1))
    coverage, accuracy = zip(*((point.coverage, point.accuracy) for point in measured.coverage), strict=True)
    axes.plot(coverage, accuracy, color=_COLOURS[0], marker=_MARKERS[0], markersize=4, label="the most certain first")
    axes.axhline(measured.accuracy, color=_INK, linestyle=":", label=f"accuracy {measured.accuracy:.3f}")


def _unbeaten(curve: Sequence[CurvePoint]) -> list[tuple[float, float]]:
    """Return milliseconds and recall of the settings that no other one beats in both, in rising order."""
    best: list[tuple[float, float]] = []
    for point in sorted(curve, key=lambda point: (point.milliseconds, -point.recall)):
        if not best or point.recall > best[-1][1]:
            best.append((point.milliseconds, point.recall))
    return best


def _ticks_at_points(axes: Axes, series: Mapping[str, Line]) -> None:
    points = sorted({x for line in series.values() for x in line.x or ()})
    axes.set_xscale("log")
    axes.set_xticks(points, [f"{x:g}" for x in points])
    axes.minorticks_off()


def _printable(text: str) -> str:
    """Return a text without what no page may hold: control characters and halves of surrogate pairs."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", " ", text)


def _short(text: str, most: int) -> str:
    text = _printable(text)
    # matplotlib leaves lines whose label begins with an underscore out of the legend.
    text = f"\u200b{text}" if text.startswith("_") else text
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _svg(figure: Figure, title: str, description: str) -> str:
    """Write a figure as an `svg` element that is named for those who cannot see it."""
    buffer = io.StringIO()
    # The names of parts must differ between the plots of a page, and be the same each time.
    with mpl.rc_context({"svg.hashsalt": title}), warnings.catch_warnings():
        # Its own fonts lack emoji and many scripts; it only measures with them, the reader's browser draws.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    _, element = buffer.getvalue().split("<svg ", 1)
    # Groups are named alike in every plot; on a page, a name may be given once.
    element = re.sub(r'<g id="[^"]*">', "<g>", element).replace(_INK, "currentColor")
    return f'<svg role="img" aria-label="{html.escape(_printable(description))}" {element}'
