"""Snapshot: one immutable state of an index, with everything needed to answer from it.

A folder of six files and a manifest. Row i of the embeddings, vector i of the index and row i of the catalogue are one
picture. The manifest is written last and holds the SHA-256 of every other file, so its existence means that the
snapshot is complete, and opening it proves that nothing has changed since.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from indexer.catalog import Catalog, ImageRecord
from indexer.encoder import Embeddings, EncoderSpec
from indexer.errors import BuildError, CorruptSnapshot, ImageError, Reason
from indexer.images import DecodePolicy, content_hash
from indexer.index import DEFAULT, DEPTH, Index, Rows, SearchParameters, VectorIndex, nearest
from indexer.recall import QueryKind, Tuning
from indexer.relevance import Relevance
from indexer.selection import Selection
from indexer.sources.fetch import FetchPolicy
from indexer.sources.opening import open_sources

MANIFEST = "manifest.json"
EMBEDDINGS = "embeddings.npy"
INDEX = "index.faiss"
CATALOG = "catalog.sqlite"
THUMBNAILS = "thumbnails.bin"
SKIPPED = "skipped.parquet"
TEXT_MAP = "text_map.npy"
CHECKSUM = "checksum"
"""Field of a manifest file: the checksum of all its others. A manifest without one is refused."""

NEAR_DUPLICATES = 0.95
"""Cosine similarity from which pictures that look the same are grouped: `near_duplicates.py` says how it was chosen."""

TARGET_RECALL = 0.98
"""Recall@10 that an approximate index is tuned to, for each kind of query."""

# Scores are compared, and given out, to this many decimals: what is beyond differs with the order of additions.
SCORE_DECIMALS = 6
_FILES = frozenset({EMBEDDINGS, INDEX, CATALOG, THUMBNAILS, SKIPPED, TEXT_MAP})
# Comparing with so many pictures takes about as long as searching an index for what few of its vectors are. Measured on
# a random selection of 1,000,000 x 512, IVF1024,PQ256x4fs with Refine, widened: 6 ms against 9 at 10,000, 14 against 12
# at 20,000, 25 against 12 at 50,000; 1.7 ms in batches of 32 at 20,000. Comparing misses nothing.
_FEW = 20_000
_CANARIES = 8
_CANARY_SCORE = 0.999


class FileFacts(BaseModel):
    """Size in bytes and SHA-256, in hex, of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: str


class BuildOptions(BaseModel):
    """What a build was asked for, apart from the encoder; a reindex asks for the same.

    Attributes:
        sources: where the pictures are, as `indexer.sources.opening` understands it; local paths are absolute.
        labels: `parent`, the absolute path of a table, or None.
        index: a FAISS factory string or `auto`.
        near_duplicates: cosine similarity from which pictures that look the same are grouped; None groups none.
        target_recall: recall@10 that an approximate index must reach for each kind of query, 0 to 1.
        accept_low_recall: whether to publish an index that does not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[str, ...]
    labels: str | None = None
    index: str = "auto"
    near_duplicates: float | None = Field(default=NEAR_DUPLICATES, ge=0, le=1)
    target_recall: float = Field(default=TARGET_RECALL, gt=0, le=1)
    accept_low_recall: bool = False


class Manifest(BaseModel):
    """The description of a snapshot.

    Attributes:
        created_at: when its build began.
        factory: FAISS's string of the index; of Flat, which is exact, there is nothing to tune.
        tuning: how an approximate index is searched; None: with FAISS's own settings.
        relevance: what scores and votes were learnt to mean; None where nothing has been learnt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[3] = 3
    id: str
    created_at: datetime
    options: BuildOptions
    encoder: EncoderSpec
    limits: DecodePolicy
    factory: str
    tuning: Tuning | None = None
    relevance: Relevance | None = None
    count: int
    skipped: dict[Reason, int]
    files: dict[str, FileFacts]


@dataclass(frozen=True)
class Hit:
    """One answer: a picture and its cosine similarity to the query, from -1 to 1, higher is better."""

    image: ImageRecord
    score: float


@dataclass(frozen=True)
class _Among:
    """Which pictures a search is among, and how it is made."""

    kind: QueryKind
    selection: Selection | None
    exact: bool


@dataclass(frozen=True)
class Snapshot:
    """An open snapshot. Reads may run in several threads; its files close with the last reference to it.

    Attributes:
        text_map: as `text_map.fit_text_map` returns it, shape (dim, dim); None where there were too few captions.
    """

    folder: Path
    manifest: Manifest
    embeddings: Embeddings
    index: Index
    catalog: Catalog
    thumbnails: NDArray[np.uint8]
    text_map: Embeddings | None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a snapshot folder after comparing every file with the manifest.

        Raises:
            CorruptSnapshot: a file is missing, changed or not listed, or the files disagree.
        """
        manifest = read_manifest(folder)
        _verify(folder, manifest)
        try:
            embeddings = npy.open_memmap(folder / EMBEDDINGS, mode="r")
            thumbnails = np.memmap(folder / THUMBNAILS, np.uint8, "r")
            text_map = npy.open_memmap(folder / TEXT_MAP, mode="r")
        except ValueError as error:
            raise CorruptSnapshot(f"{folder} holds no embeddings, no thumbnails or no text map: {error}") from error
        snapshot = cls(
            folder,
            manifest,
            embeddings,
            VectorIndex.open(folder / INDEX),
            Catalog.open(folder / CATALOG),
            thumbnails,
            text_map if text_map.size else None,
        )
        snapshot._check()
        return snapshot

    def __len__(self) -> int:
        return self.manifest.count

    def search(
        self,
        vectors: Embeddings,
        limit: int,
        kind: QueryKind,
        *,
        selection: Selection | None = None,
        exact: bool = False,
    ) -> list[list[Hit]]:
        """Return the pictures nearest to each of n vectors, best first, ties by id.

        Args:
            vectors: unit rows, shape (n, dim).
            limit: at least 1; how many hits at most, for each.
            kind: what the vectors were made of: each kind is searched as thoroughly as it was measured to need.
            selection: rows to search among; None for all.
            exact: whether to compare with every picture, however long that takes.

        Returns:
            For each vector `limit` hits, or as many as there are pictures to search among.
        """
        among = _Among(kind, selection, exact)
        rows = self._nearest(vectors, limit + 1, among)
        return [
            self._settled(vector, limit, among, hits)
            for vector, hits in zip(vectors, self._ranked(rows, vectors), strict=True)
        ]

    def vector(self, image: ImageRecord) -> NDArray[np.float32]:
        """Return the embedding of a picture, shape (dim,)."""
        return np.array(self.embeddings[image.row])

    def thumbnail(self, image: ImageRecord) -> bytes:
        """Return the thumbnail of a picture, a JPEG."""
        offset, size = image.thumbnail
        return self.thumbnails[offset : offset + size].tobytes()

    def original(self, image: ImageRecord, policy: DecodePolicy) -> bytes:
        """Return the file of a picture, provided that it is still the one that was indexed.

        Comparing the content, not the path, leaves no way to another file, whatever links are put in between.

        Raises:
            ImageError: the file is gone or has changed.
        """
        name = self.manifest.options.sources[image.source]
        try:
            source = open_sources([name], FetchPolicy())[0]
        except BuildError as error:
            detail = f"The file of picture {image.id} cannot be read: its source is gone. {error}"
            raise ImageError(Reason.UNREADABLE, detail) from error
        if source.remote:
            raise ImageError(Reason.UNREACHABLE, f"The file of picture {image.id} lies in {name}: get it from there.")
        data = source.read(image.place or image.path, policy)
        if content_hash(data) != image.content_hash:
            raise ImageError(Reason.CHANGED, f"The file of picture {image.id} has changed since it was indexed.")
        return data

    def check_canaries(self) -> None:
        """Search for a few of the snapshot's own pictures.

        Raises:
            CorruptSnapshot: more than half of them are not found. An approximate index may miss one; an index over
                other vectors misses nearly all.
        """
        rows = np.linspace(0, len(self) - 1, _CANARIES).astype(np.int64)
        vectors = self.embeddings[rows]
        # The index by itself: `search` makes up for what it does not find.
        answers = self.index.search(vectors, DEPTH, self._parameters(QueryKind.IMAGE))
        near = (self.embeddings[own[own >= 0]] @ vector for own, vector in zip(answers, vectors, strict=True))
        found = [bool(scores.size) and scores.max() >= _CANARY_SCORE for scores in near]
        if sum(found) * 2 < len(found):
            raise CorruptSnapshot(f"{self.folder}: {len(found) - sum(found)} of {len(found)} canaries were not found.")

    def _nearest(self, vectors: Embeddings, k: int, among: "_Among") -> list[Rows]:
        """Return the rows of the k nearest pictures to each vector, or of all there are, in no certain order."""
        selection = among.selection
        available = len(self) if selection is None else selection.count
        k = min(k, available)
        if not k:
            return [np.empty(0, np.int64)] * len(vectors)
        narrow = selection is not None and (selection.count <= _FEW or not self.index.selects)
        if narrow or (among.exact and not self.index.exact):
            return list(nearest(self.embeddings, vectors, k, selection))
        parameters = self._parameters(among.kind).widened(len(self) / available)
        found = list(self.index.search(vectors, k, parameters, selection))
        for number, rows in enumerate(found):
            if (rows < 0).any():
                # Too few lists were scanned, or too much of the graph was not selected.
                found[number] = nearest(self.embeddings, vectors[number : number + 1], k, selection)[0]
        return found

    def _parameters(self, kind: QueryKind) -> SearchParameters:
        tuning = self.manifest.tuning
        return DEFAULT if tuning is None else tuning.parameters(kind)

    def _ranked(self, rows: Sequence[Rows], vectors: Embeddings) -> list[list[Hit]]:
        """Return hits of the rows found for each vector, best first, ties by id."""
        images = iter(self.catalog.rows(np.concatenate(rows).tolist()))
        ranked = []
        for own, vector in zip(rows, vectors, strict=True):
            # Scores come from the embeddings, so that they are true cosines whatever the index stores.
            # In double precision, since in single equal rows may differ in the last decimal, and not be ties.
            scores = np.round(self.embeddings[own].astype(np.float64) @ vector.astype(np.float64), SCORE_DECIMALS)
            hits = [Hit(image, score) for image, score in zip(islice(images, len(own)), scores.tolist(), strict=True)]
            ranked.append(sorted(hits, key=lambda hit: (-hit.score, hit.image.id)))
        return ranked

    def _settled(self, vector: NDArray[np.float32], limit: int, among: "_Among", hits: list[Hit]) -> list[Hit]:
        """Return the best `limit` hits; ask for more while equals of the last of them may have been left out."""
        asked = limit + 1
        while len(hits) == asked and hits[-1].score == hits[limit - 1].score:
            asked *= 2
            (hits,) = self._ranked(self._nearest(vector[None, :], asked, among), vector[None, :])
        return hits[:limit]

    def _check(self) -> None:
        count, dim = self.manifest.count, self.manifest.encoder.dim
        if self.embeddings.shape != (count, dim) or self.embeddings.dtype != np.float32:
            found = f"{self.embeddings.shape} of {self.embeddings.dtype}"
            raise CorruptSnapshot(f"{self.folder}: the embeddings are {found}, not ({count}, {dim}) of float32.")
        text_map = self.text_map
        if text_map is not None and (text_map.shape != (dim, dim) or text_map.dtype != np.float32):
            found = f"{text_map.shape} of {text_map.dtype}"
            raise CorruptSnapshot(f"{self.folder}: the text map is {found}, not ({dim}, {dim}) of float32.")
        if (len(self.index), self.index.dim) != (count, dim):
            found = f"{len(self.index)} x {self.index.dim}"
            raise CorruptSnapshot(f"{self.folder}: the index is {found}, not {count} x {dim}.")
        if len(self.catalog) != count:
            raise CorruptSnapshot(f"{self.folder}: the catalogue has {len(self.catalog)} pictures, not {count}.")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a snapshot folder.

    Raises:
        CorruptSnapshot: there is none, or it cannot be understood.
    """
    path = folder / MANIFEST
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):  # reading a pipe would never end
            raise CorruptSnapshot(f"{path} is not a regular file.")
        data = path.read_bytes()
    except OSError as error:
        raise CorruptSnapshot(f"{folder} has no readable manifest: {error.strerror}.") from error
    try:
        facts = json.loads(data)
        sealed = facts.pop(CHECKSUM, None) if isinstance(facts, dict) else None
        if sealed is not None and sealed != checksum(facts):
            raise CorruptSnapshot(f"{path} has changed since it was written: its checksum is not that of its content.")
        manifest = Manifest.model_validate_json(json.dumps(facts))
    except (ValueError, RecursionError) as error:  # of Unicode, of JSON and of pydantic
        raise CorruptSnapshot(
            f"{path} is not a manifest of format 3; a snapshot of an earlier kindred is to be built anew: {error}"
        ) from error
    if sealed is None:
        raise CorruptSnapshot(f"{path} has no checksum, so that nothing tells of a change: build the snapshot again.")
    return manifest


def checksum(facts: dict[str, Any]) -> str:
    """Return the SHA-256, in hex, of what a manifest says, however that is laid out.

    `CURRENT` holds the hash of the current manifest only; this tells that an earlier one is still as it was written.
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def file_facts(path: Path) -> FileFacts:
    """Hash a file.

    Raises:
        CorruptSnapshot: it cannot be read, or is none: a link leads out of a snapshot, and a pipe has no end.
    """
    try:
        if path.is_symlink() or not path.is_file():
            raise CorruptSnapshot(f"{path} is not a regular file: a snapshot holds its files itself.")
        with path.open("rb") as file:
            return FileFacts(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise CorruptSnapshot(f"{path} cannot be read: {error.strerror}.") from error


def _verify(folder: Path, manifest: Manifest) -> None:
    expected = {MANIFEST, *_FILES}
    if set(manifest.files) != _FILES:
        raise CorruptSnapshot(f"{folder / MANIFEST} lists {sorted(manifest.files)}, not {sorted(_FILES)}.")
    present = {entry.name for entry in folder.iterdir()}
    if expected != present:
        wrong = ", ".join(sorted(expected ^ present))
        raise CorruptSnapshot(f"{folder} does not hold the files that its manifest lists; missing or extra: {wrong}.")
    for name, facts in manifest.files.items():
        found = file_facts(folder / name)
        if found != facts:
            raise CorruptSnapshot(f"{folder / name} has changed: expected {facts}, found {found}.")
