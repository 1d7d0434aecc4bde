"""evaluate_models(): models by their names, one after the other."""

from collections.abc import Mapping
from dataclasses import replace

from indexer.encoder import Encoder, EncoderName, load_encoder
from indexer.evaluate.evaluation import check, evaluate_encoded
from indexer.evaluate.report import Evaluation
from indexer.evaluate.task import EvaluateOptions
from indexer.progress import Reporter
from indexer.samples import Encoded, Samples, encode_samples
from indexer.settings import Settings


def evaluate_models(
    models: Mapping[str, EncoderName],
    samples: Samples,
    options: EvaluateOptions,
    settings: Settings,
    progress: Reporter | None = None,
    gallery: Samples | None = None,
) -> dict[str, Evaluation]:
    """Evaluate models one after the other; pictures are not encoded again by the image half that just did.

    Args:
        models: by what they are called in their reports.
        samples: the pictures.
        options: how to evaluate.
        settings: where encoders run.
        progress: is told how far the encoding has come.
        gallery: pictures that vote in the k-NN vote; None means the others of `samples`.

    Raises:
        EncoderError: a model cannot be loaded.
        BuildError: no picture can be used, or the options do not fit the pictures.
    """
    evaluations = {}
    encoded, voters = _Once(samples, progress), None if gallery is None else _Once(gallery, progress)
    for name, model in models.items():
        encoder = load_encoder(model, device=settings.device, threads=settings.threads)
        check(options, samples, gallery, encoder)
        named = replace(options, model=name)
        voting = None if voters is None else voters.encode(encoder)
        evaluations[name] = evaluate_encoded(encoder, encoded.encode(encoder), named, voting)
    return evaluations


class _Once:
    """Pictures, and what the last image half made of them."""

    def __init__(self, samples: Samples, progress: Reporter | None) -> None:
        self._samples, self._progress = samples, progress
        self._last: tuple[str, Encoded] | None = None

    def encode(self, encoder: Encoder) -> Encoded:
        if self._last is None or self._last[0] != encoder.spec.image:
            self._last = encoder.spec.image, encode_samples(self._samples, encoder, self._progress)
        return self._last[1]
