"""Folders of reports: one model's, or those of several with their comparison.

report.json, report.html, queries.npz    of one model; of several, in a folder each
comparison.json, .html, .md              of several, beside these folders
"""

from collections.abc import Mapping
from pathlib import Path

from indexer.encoder import EncoderName
from indexer.evaluate.compare import Comparison, compare
from indexer.evaluate.models import evaluate_models
from indexer.evaluate.page import comparison_page, report_page, thumbnails
from indexer.evaluate.report import Evaluation
from indexer.evaluate.task import EvaluateOptions
from indexer.progress import Reporter
from indexer.samples import Samples
from indexer.settings import Settings


def write_evaluation(evaluation: Evaluation, samples: Samples, folder: Path) -> None:
    """Write an evaluation into a folder; `samples` has the pictures that the page shows."""
    folder.mkdir(parents=True, exist_ok=True)
    evaluation.save(folder)
    page = report_page(evaluation.report, thumbnails(evaluation.report, samples))
    (folder / "report.html").write_text(page, encoding="utf-8")


def write_comparison(
    comparison: Comparison, evaluations: Mapping[str, Evaluation], samples: Samples, folder: Path
) -> None:
    """Write a comparison into a folder, and what it compares into folders below."""
    for name, evaluation in evaluations.items():
        write_evaluation(evaluation, samples, folder / name)
    (folder / "comparison.json").write_text(comparison.model_dump_json(indent=1), encoding="utf-8")
    (folder / "comparison.md").write_text(f"{comparison.markdown(every=True)}\n", encoding="utf-8")
    (folder / "comparison.html").write_text(comparison_page(comparison), encoding="utf-8")


def compare_models(
    models: Mapping[str, EncoderName],
    samples: Samples,
    options: EvaluateOptions,
    settings: Settings,
    folder: Path,
    progress: Reporter | None = None,
) -> Comparison:
    """Evaluate models, put them side by side against the first, and write all of it into a folder.

    Args and errors are those of `evaluate_models`; the names of the models name folders too.
    """
    evaluations = evaluate_models(models, samples, options, settings, progress)
    comparison = compare({name: [evaluation] for name, evaluation in evaluations.items()})
    write_comparison(comparison, evaluations, samples, folder)
    return comparison
