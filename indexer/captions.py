"""Pseudo-captions: each picture is paired with the nearest captions of a corpus, by the base model.

The method of Schall et al. (SISAP 2024): captions are retrieved, not generated. Of the 20 nearest captions those above
a cosine similarity of 0.27 are kept, which suits CLIPs of OpenAI's and LAION's scale; other models have other scales
(SigLIP's similarities are far lower), and for them a percentile stands in for the threshold.
"""

import functools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from indexer.ahead import BATCH_SIZE
from indexer.encoder import Embeddings, Encoder, EncoderName, load_encoder
from indexer.errors import BuildError
from indexer.images import DecodePolicy
from indexer.index import nearest
from indexer.labels import TABLES, describe, read_rows
from indexer.progress import ProgressStyle, Reporter, reporter
from indexer.samples import Samples, encode_samples, load_samples
from indexer.settings import Settings

TOP = 20

# Captions that are encoded and searched at a time: 200 MB of embeddings at 768 dimensions, however large the corpus.
_PORTION = 65_536


@dataclass(frozen=True)
class Threshold:
    """Of its `top` nearest captions a picture keeps those above a cosine similarity."""

    similarity: float = 0.27
    top: int = TOP

    def limit(self, _: NDArray[np.float32]) -> float:
        """Return the similarity."""
        return self.similarity


@dataclass(frozen=True)
class Percentile:
    """Of its `top` nearest captions a picture keeps those above a percentile of the collection's similarities.

    The similarities of every picture to each of its nearest captions are put together, and the limit is this percentile
    of them, as `numpy.percentile` interpolates it. At 75 a quarter of all pairs is kept, and pictures that the corpus
    describes well keep more of them. From 0 to below 100.
    """

    percent: float
    top: int = TOP

    def __post_init__(self) -> None:
        if not 0 <= self.percent < 100:  # noqa: PLR2004 - per cent
            raise BuildError(f"A percentile lies from 0 to below 100, and {self.percent:g} does not.")

    def limit(self, scores: NDArray[np.float32]) -> float:
        """Return the percentile of these similarities."""
        return float(np.percentile(scores, self.percent))


Rule = Threshold | Percentile
"""Which of its nearest captions a picture keeps."""


@dataclass(frozen=True)
class Match:
    """A caption of the corpus and its cosine similarity to a picture."""

    caption: str
    score: float


@dataclass(frozen=True)
class _Candidates:
    """The nearest captions of n pictures, best first: `rows` of the corpus and `scores`, both of shape (n, k)."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


def mine_captions(images: Embeddings, corpus: Sequence[str], texts: Embeddings, rule: Rule) -> list[list[Match]]:
    """Return the captions that each picture keeps, best first.

    Args:
        images: unit rows, shape (n, dim), at least one.
        corpus: m different captions, at least one.
        texts: their embeddings, unit rows, shape (m, dim).
        rule: which are kept.
    """
    return _select(_nearest(images, texts, 0, rule.top), corpus, rule)


def mine_corpus(
    images: Embeddings,
    corpus: Sequence[str],
    encoder: Encoder,
    rule: Rule,
    progress: Reporter | None = None,
    portion: int = _PORTION,
) -> list[list[Match]]:
    """Do as `mine_captions` does, holding the embeddings of `portion` captions at a time."""
    starts = range(0, len(corpus), portion)
    found = (_nearest(images, _encode(corpus, at, at + portion, encoder, progress), at, rule.top) for at in starts)
    return _select(functools.reduce(lambda one, other: _joined(one, other, rule.top), found), corpus, rule)


def read_corpus(corpus: Path) -> list[str]:
    """Return every caption of a corpus once, in the order of its first line or row.

    Args:
        corpus: a `.txt` file with one caption per line, or a table with a column `caption` or `captions`.

    Raises:
        BuildError: it cannot be read, or holds no captions.
    """
    captions = _lines(corpus) if corpus.suffix == ".txt" else _column(corpus)
    kept = list(dict.fromkeys(caption for caption in captions if caption))
    if not kept:
        raise BuildError(f"{corpus} holds no captions: give one per line, or a table with a column 'caption'.")
    return kept


def write_captions(out: Path, samples: Samples, matches: Sequence[Sequence[Match]]) -> None:
    """Write one line {path, label, captions, scores} per picture, all of them or none: a table that `--labels` reads.

    Raises:
        BuildError: the file exists already, or cannot be written.
    """
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with part.open("x", encoding="utf-8") as file:
            for sample, kept in zip(samples, matches, strict=True):
                found = {"captions": [match.caption for match in kept], "scores": [round(m.score, 6) for m in kept]}
                row = {"path": sample.name, "label": sample.label, **found}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if out.exists():
            raise BuildError(f"{out} exists already; a table of captions is never overwritten.")
        part.rename(out)
    except OSError as error:
        raise BuildError(f"The captions cannot be written to {out}: {error.strerror}.") from error
    finally:
        part.unlink(missing_ok=True)


def caption(
    data: Annotated[Path, typer.Option(help="Pictures: a folder, a table of paths, or WebDataset shards.")],
    corpus: Annotated[Path, typer.Option(help="Captions: a .txt with one per line, or a table with a column caption.")],
    out: Annotated[Path, typer.Option(help="Table to write, a .jsonl; must not exist.")],
    labels: Annotated[
        str | None, typer.Option(help="parent, gpr1200, or a .csv, .jsonl or .parquet table; kept in the output.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Encoder, instead of KINDRED_MODEL.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="Its weights, instead of KINDRED_PRETRAINED.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the nearest captions are looked at.")] = TOP,
    threshold: Annotated[
        float | None,
        typer.Option(help=f"Keep captions above this cosine similarity; {Threshold.similarity} by default."),
    ] = None,
    percentile: Annotated[
        float | None, typer.Option(help="Keep pairs above this percentile of the similarities, instead of a threshold.")
    ] = None,
    progress: Annotated[ProgressStyle, typer.Option(help="How to show progress.")] = ProgressStyle.AUTO,
) -> None:
    """Pair each picture with its nearest captions of a corpus: pseudo-captions to train on."""
    if out.suffix != ".jsonl" or out.exists() or not out.parent.is_dir():
        raise typer.BadParameter(f"{out} must be a new .jsonl file in a folder that exists.", param_hint="--out")
    if threshold is not None and percentile is not None:
        raise typer.BadParameter("Give either --threshold or --percentile.", param_hint="--percentile")
    rule: Rule = Threshold(top=top) if threshold is None else Threshold(threshold, top)
    if percentile is not None:
        rule = Percentile(percentile, top)
    settings = Settings()
    samples = load_samples(data, labels, DecodePolicy.of(settings))
    texts = read_corpus(corpus)
    name = EncoderName.of(settings, model, pretrained)
    encoder = load_encoder(name, device=settings.device, threads=settings.threads)
    shown = reporter(progress)
    try:
        encoded = encode_samples(samples, encoder, shown)
        matches = mine_corpus(encoded.embeddings, texts, encoder, rule, shown)
    finally:
        shown.close()
    write_captions(out, encoded.samples, matches)
    typer.echo(_summary(out, matches, len(texts), len(encoded.skipped)))


def _encode(corpus: Sequence[str], start: int, end: int, encoder: Encoder, progress: Reporter | None) -> Embeddings:
    """Encode the captions from `start` to before `end`, or to the last one."""
    end = min(end, len(corpus))
    batches = []
    for first in range(start, end, BATCH_SIZE):
        last = min(first + BATCH_SIZE, end)
        batches.append(encoder.encode_texts(corpus[first:last]))
        if progress:
            progress.update("captions", last, len(corpus))
    return np.concatenate(batches)


def _nearest(images: Embeddings, texts: Embeddings, start: int, top: int) -> _Candidates:
    """Return the captions nearest to each picture, of those from row `start` of the corpus; equal ones in its order."""
    rows = np.sort(nearest(texts, images, min(top, len(texts))), axis=1)
    scores = np.stack([texts[own] @ image for own, image in zip(rows, images, strict=True)])
    best = np.argsort(-scores, axis=1, stable=True)
    return _Candidates(np.take_along_axis(rows, best, axis=1) + start, np.take_along_axis(scores, best, axis=1))


def _joined(one: _Candidates, other: _Candidates, top: int) -> _Candidates:
    """Return the best of two sets of candidates; equal ones in the order of the corpus."""
    rows, scores = np.hstack([one.rows, other.rows]), np.hstack([one.scores, other.scores])
    best = np.argsort(-scores, axis=1, stable=True)[:, :top]
    return _Candidates(np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1))


def _select(found: _Candidates, corpus: Sequence[str], rule: Rule) -> list[list[Match]]:
    kept = found.scores > rule.limit(found.scores)
    return [
        [Match(corpus[row], float(score)) for row, score in zip(rows[keep], scores[keep], strict=True)]
        for rows, scores, keep in zip(found.rows, found.scores, kept, strict=True)
    ]


def _lines(corpus: Path) -> Iterator[str]:
    try:
        with corpus.open(encoding="utf-8-sig") as file:
            yield from (line.strip() for line in file)
    except OSError as error:
        raise BuildError(f"The corpus {corpus} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BuildError(f"The corpus {corpus} is not UTF-8: {error}.") from error


def _column(corpus: Path) -> Iterator[str]:
    if corpus.suffix not in TABLES:
        raise BuildError(f"A corpus is a .txt file or a table ({', '.join(TABLES)}), not {corpus}.")
    for _, row in read_rows(corpus):
        yield from describe(row)[1].captions()


def _summary(out: Path, matches: Sequence[Sequence[Match]], corpus: int, skipped: int) -> str:
    scores = [match.score for kept in matches for match in kept]
    least = f", the least similar at {min(scores):.3f}" if scores else ""
    without = sum(not kept for kept in matches)
    return (
        f"{out}: {len(matches):,} pictures keep {len(scores):,} captions of a corpus of {corpus:,}{least}; "
        f"{without:,} pictures keep none, {skipped:,} files could not be used."
    )
