"""Reports and comparisons as one HTML file each, which needs nothing beside it."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from indexer.errors import ImageError
from indexer.evaluate.compare import Comparison, shown_cell_difference
from indexer.evaluate.plots import Line, lines, matrix
from indexer.evaluate.queries import Kind
from indexer.evaluate.report import Confusion, Report, shown, shown_interval
from indexer.samples import Samples

_SIDE = 128
"""Of a thumbnail, in pixels."""

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


_TEMPLATES.filters |= {"shown": shown, "interval": shown_interval, "difference": shown_cell_difference}


def report_page(report: Report, thumbnails: Mapping[str, str]) -> str:
    """Return a report as an HTML page.

    Args:
        report: to show.
        thumbnails: data URIs of the pictures that its examples name; one that is missing is shown by its name.
    """
    plots: dict[str, list[str]] = {}
    if report.curve:
        plots["Image to image"] = [precision_recall({report.model: report.curve})]
    if report.sweep:
        plots["k-NN classification"] = [_sweep(report)]
    if report.confusion:
        plots.setdefault("k-NN classification", []).append(_confusion(report.confusion))
    return _TEMPLATES.get_template("page_report.html").render(report=report, thumbnails=thumbnails, plots=plots)


def comparison_page(comparison: Comparison) -> str:
    """Return a comparison as an HTML page."""
    curves = {row.model: row.curve for row in comparison.rows if row.curve}
    several = any(len(cell.seeds) > 1 for row in comparison.rows for cell in row.cells)
    plots = [precision_recall(curves)] if curves else []
    template = _TEMPLATES.get_template("page_comparison.html")
    return template.render(comparison=comparison, plots=plots, several_seeds=several)


def thumbnails(report: Report, samples: Samples) -> dict[str, str]:
    """Return the pictures that a report's examples name, as data URIs by name; those that can be decoded."""
    wanted = {example.query for example in report.examples if example.kind is Kind.PICTURE}
    wanted |= {hit.picture for example in report.examples for hit in example.hits}
    found = {}
    for row, sample in enumerate(samples):
        if sample.name in wanted:
            try:
                image = samples.image(row).copy()
            except ImageError:
                continue
            image.thumbnail((_SIDE, _SIDE), reducing_gap=2.0)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=80)
            found[sample.name] = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return found


def precision_recall(curves: Mapping[str, tuple[float, ...]]) -> str:
    """Return the precision-recall curves of models, as `Report.curve` has them, in one plot."""
    series = {
        model: Line(curve, [step / (len(curve) - 1) for step in range(len(curve))]) for model, curve in curves.items()
    }
    return lines(series, "Image to image", "recall", "interpolated precision", ylimits=(0, 1.02))


def _sweep(report: Report) -> str:
    series = {}
    for temperature in sorted({point.temperature for point in report.sweep}):
        points = [point for point in report.sweep if point.temperature == temperature]
        series[f"temperature {temperature:g}"] = Line(
            [point.accuracy for point in points], [point.k for point in points]
        )
    return lines(series, "k-NN vote", "neighbours k", "accuracy", logarithmic=True)


def _confusion(found: Confusion) -> str:
    shown_classes = len(found.labels)
    some = f", the {shown_classes} most confused of {found.classes:,} classes" if shown_classes < found.classes else ""
    return matrix(found.labels, found.counts, f"Confusion of the k-NN vote{some}", "taken for", "is")
