"""Samples: the labelled, captioned pictures of a training or evaluation set, from folder, table or shards.

Every set is random access with a stable order, whatever it comes from: sample i is the same picture tomorrow.
"""

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, overload

import numpy as np
from PIL.Image import Image

from indexer.ahead import BATCH_SIZE, ahead
from indexer.encoder import Embeddings, Encoder, Pixels
from indexer.errors import BuildError, ImageError
from indexer.images import RGB, DecodePolicy, ImageFile, decode, read, scan
from indexer.labels import PARENT, TABLES, Description, read_descriptions
from indexer.progress import Reporter
from indexer.tars import find_shards, read_shard

GPR1200 = "gpr1200"
LABEL = "label"

_GPR1200_NAME = re.compile(r"([0-9]+)_.")


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture of a training or evaluation set, and what is said of it.

    Attributes:
        name: its path in the collection, or `shard.tar/key`; unique.
        label: its class.
        captions: each once.
        metadata: everything else that a table or shard says.
    """

    name: str
    label: str | None
    captions: tuple[str, ...]
    metadata: dict[str, Any]


class Picture(Protocol):
    """Where the bytes of a picture come from."""

    def read(self, policy: DecodePolicy) -> bytes:
        """Return the bytes; ImageError where they may not or cannot be read."""
        ...


class Samples(Sequence[Sample]):
    """Samples in a stable order, and their pictures. Immutable; pictures may be read in several threads."""

    def __init__(self, samples: Sequence[Sample], pictures: Sequence[Picture], policy: DecodePolicy) -> None:
        self._samples = samples
        self._pictures = pictures
        self._policy = policy

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        return self._samples[index]

    def read(self, i: int) -> bytes:
        """Return the file of picture i.

        Raises:
            ImageError: it cannot be read, or is refused: too large, a link out of the collection, a bad name.
        """
        return self._pictures[i].read(self._policy)

    def image(self, i: int) -> Image:
        """Return picture i as upright 8-bit RGB; for those who need Pillow, since it takes a copy.

        Raises:
            ImageError: it cannot be read or decoded.
        """
        return decode(self.read(i), self._policy).image

    def rgb(self, i: int) -> RGB:
        """Return the pixels of picture i.

        Raises:
            ImageError: it cannot be read or decoded.
        """
        return decode(self.read(i), self._policy).rgb

    def column(self, name: str) -> list[str | None]:
        """Return `label`, or a column of the metadata, as text; None where a sample has none.

        Numbers, truth values and lists are written as JSON writes them.

        Raises:
            BuildError: no sample has that column; labels are the exception: a set may have none.
        """
        if name == LABEL:
            return [sample.label for sample in self]
        values = [_text(sample.metadata.get(name)) for sample in self]
        if all(value is None for value in values):
            known = sorted({LABEL, *itertools.chain.from_iterable(sample.metadata for sample in self)})
            raise BuildError(f"No picture has a column {name!r}; there are: {', '.join(known)}.")
        return values

    def where(self, conditions: Mapping[str, str]) -> "Samples":
        """Return the samples whose columns equal these values, as text.

        Raises:
            BuildError: no sample has such a column, or none has these values.
        """
        columns = {name: self.column(name) for name in conditions}
        rows = [i for i in range(len(self)) if all(columns[name][i] == want for name, want in conditions.items())]
        if not rows:
            wanted = " and ".join(f"{name} = {want!r}" for name, want in conditions.items())
            raise BuildError(f"None of {len(self):,} pictures has {wanted}.")
        return self.subset(rows)

    def relabelled(self, labels: Sequence[str | None]) -> "Samples":
        """Return the same pictures under other labels; label i is that of sample i."""
        samples = [replace(sample, label=label) for sample, label in zip(self, labels, strict=True)]
        return Samples(samples, self._pictures, self._policy)

    def recaptioned(self, captions: Sequence[Sequence[str]]) -> "Samples":
        """Return the same pictures with other captions; those at i are of sample i."""
        samples = [replace(sample, captions=tuple(own)) for sample, own in zip(self, captions, strict=True)]
        return Samples(samples, self._pictures, self._policy)

    def subset(self, indices: Iterable[int]) -> "Samples":
        """Return the samples at these places, in their order."""
        rows = [int(i) for i in indices]
        return Samples([self._samples[i] for i in rows], [self._pictures[i] for i in rows], self._policy)


@dataclass(frozen=True)
class Encoded:
    """Samples that could be decoded, with their embeddings: row i, of shape (n, dim), is that of sample i."""

    samples: Samples
    embeddings: Embeddings
    skipped: tuple[tuple[str, ImageError], ...]


@dataclass(frozen=True, slots=True)
class _File:
    """A picture that is a file; a link may not lead out of `root`."""

    file: ImageFile
    root: Path

    def read(self, policy: DecodePolicy) -> bytes:
        return read(self.file, self.root, policy)


def load_samples(data: Path, labels: str | None, policy: DecodePolicy) -> Samples:
    """Find the pictures of a set, and what is said of them; no picture is opened yet.

    Args:
        data: a folder of pictures, scanned as a build scans it; a `.csv`, `.jsonl` or `.parquet` table, whose paths are
            relative to its folder, or absolute; or WebDataset shards (`find_shards`). A table may name a picture in
            several rows: their captions add up, and of everything else the last row counts.
        labels: of a folder, `parent` (the name of the folder that a picture is in) or `gpr1200` (the number before the
            first `_` of each file's name, which also gives the order). Of everything, a table that names the samples:
            what it says stands in place of what `data` says. None leaves all as it is.
        policy: limits for each picture.

    Raises:
        BuildError: there are no such data or labels, or they cannot be read.
    """
    data = Path(os.path.abspath(data))  # noqa: PTH100 - Path.absolute keeps "..", which no table's path would match
    if shards := find_shards(data):
        samples = _load_shards(shards, policy)
    elif data.is_dir():
        samples = _load_folder(data, labels, policy)
        labels = None if labels in {PARENT, GPR1200} else labels
    elif data.suffix in TABLES:
        samples = _load_table(data, policy)
    else:
        raise BuildError(
            f"{data} is no folder of pictures, no table ({', '.join(TABLES)}) and no WebDataset shards (.tar)."
        )
    if not len(samples):
        raise BuildError(f"{data} holds no files.")
    if labels in {PARENT, GPR1200}:
        raise BuildError(f"The labels {labels!r} are names of files in a folder, and {data} is no folder.")
    return samples if labels is None else _described(samples, Path(labels), data)


def conditions(texts: Sequence[str]) -> dict[str, str]:
    """Return what `Samples.where` takes, of texts such as `fold=test`.

    Raises:
        BuildError: a text is no column=value.
    """
    pairs = [text.partition("=") for text in texts]
    for text, (column, equals, _) in zip(texts, pairs, strict=True):
        if not (column and equals):
            raise BuildError(f"A condition is column=value, such as fold=test; {text!r} is not.")
    return {column: value for column, _, value in pairs}


def encode_samples(samples: Samples, encoder: Encoder, progress: Reporter | None = None) -> Encoded:
    """Decode in threads, a little ahead, and encode in batches; a picture that cannot be used costs itself.

    Raises:
        BuildError: no picture can be used.
    """
    rows: list[int] = []
    batches: list[Embeddings] = []
    skipped: list[tuple[str, ImageError]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        prepared = ahead(lambda i: pool.submit(lambda: encoder.preprocess(samples.rgb(i))), range(len(samples)))
        while batch := list(itertools.islice(prepared, BATCH_SIZE)):
            pixels: list[Pixels] = []
            for i, waiting in batch:
                try:
                    pixels.append(waiting.result())
                    rows.append(i)
                except ImageError as error:
                    skipped.append((samples[i].name, error))
            batches.append(encoder.encode_images(pixels))
            if progress:
                progress.update("encode", len(rows) + len(skipped), len(samples))
    if not rows:
        reasons = Counter(error.reason for _, error in skipped)
        said = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common()) or "there are none"
        raise BuildError(f"None of {len(samples):,} pictures can be used ({said}).")
    return Encoded(samples.subset(rows), np.concatenate(batches), tuple(skipped))


def _load_folder(folder: Path, labels: str | None, policy: DecodePolicy) -> Samples:
    table = None if labels in {None, PARENT, GPR1200} else os.path.realpath(str(labels))
    files = [file for file in scan(folder) if os.path.realpath(file.location) != table]
    numbers = [_gpr1200_number(file) for file in files] if labels == GPR1200 else []
    if numbers:
        order = sorted(range(len(files)), key=lambda i: (numbers[i], files[i].path))
        files, names = [files[i] for i in order], [str(numbers[i]) for i in order]
    elif labels == PARENT:
        names = [PurePosixPath(file.path).parent.name for file in files]
    else:
        names = [""] * len(files)
    samples = [Sample(file.path, name or None, (), {}) for file, name in zip(files, names, strict=True)]
    return Samples(samples, [_File(file, folder) for file in files], policy)


def _gpr1200_number(file: ImageFile) -> int:
    found = _GPR1200_NAME.match(PurePosixPath(file.path).name)
    if not found:
        raise BuildError(f"A file of GPR1200 is named as 17_anything.jpg is, with its class first; not {file.path!r}.")
    return int(found[1])


def _load_table(table: Path, policy: DecodePolicy) -> Samples:
    said = _read_table(table, table.parent)
    pictures = [_File(ImageFile(name, table.parent / name), _root(name, table.parent)) for name in said]
    if said and not any(picture.file.location.exists() for picture in pictures):
        raise BuildError(
            f"{table} names no picture that exists. Its paths must be relative to {table.parent}, or absolute; "
            f"its first is {pictures[0].file.path!r}."
        )
    return Samples(list(said.values()), pictures, policy)


def _root(name: str, folder: Path) -> Path:
    """Return the folder that a link may not lead out of: the table's, or that of a picture that lies elsewhere."""
    return Path(name).parent if Path(name).is_absolute() else folder


def _load_shards(shards: Sequence[Path], policy: DecodePolicy) -> Samples:
    home = os.path.commonpath([shard.parent for shard in shards])
    samples: list[Sample] = []
    pictures: list[Picture] = []
    for shard in shards:
        prefix = shard.relative_to(home).as_posix()
        for entry in read_shard(shard):
            samples.append(_sample(f"{prefix}/{entry.key}", entry.description))
            pictures.append(entry.picture)
    return Samples(samples, pictures, policy)


def _described(samples: Samples, table: Path, data: Path) -> Samples:
    """Return the samples with what a table says of them in place of what they said themselves."""
    said = _read_table(table, data if data.is_dir() else data.parent)
    if not any(sample.name in said for sample in samples):
        example = next(iter(said), "none")
        raise BuildError(f"{table} names no picture of {data}; its first is {example!r}, theirs {samples[0].name!r}.")
    merged = [_merged(sample, said[sample.name]) if sample.name in said else sample for sample in samples]
    return Samples(merged, samples._pictures, samples._policy)  # noqa: SLF001 - the same pictures


def _merged(old: Sample, new: Sample) -> Sample:
    captions = new.captions or old.captions
    return Sample(old.name, new.label or old.label, captions, {**old.metadata, **new.metadata})


def _read_table(table: Path, folder: Path) -> dict[str, Sample]:
    """Return what a table says of each picture, in the order in which it names them first."""
    said: dict[str, Sample] = {}
    for name, description in read_descriptions(table, folder):
        sample = _sample(name, description)
        if name in said:
            captions = dict.fromkeys((*said[name].captions, *sample.captions))
            sample = replace(sample, captions=tuple(captions))
        said[name] = sample
    return said


def _sample(name: str, description: Description) -> Sample:
    metadata = {key: value for key, value in description.metadata.items() if key != "captions"}
    return Sample(name, description.label, description.captions(), metadata)


def _text(value: Any) -> str | None:
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
