"""The values of single queries, kept beside a report so that models can be compared on the same queries."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from indexer.errors import BuildError

Texts = NDArray[np.str_]


class Kind(StrEnum):
    """What a query is."""

    PICTURE = "picture"
    CAPTION = "caption"


@dataclass(frozen=True)
class Asked:
    """All that may be queries of one kind: what they are called, and the group that each is drawn with. Shape (n,)."""

    names: Texts
    groups: Texts


@dataclass(frozen=True)
class PerQuery:
    """The values of one figure, whose mean it is.

    Attributes:
        kind: of the queries.
        rows: the queries, as rows of that kind's `Asked`. Shape (q,).
        values: of each: average precision, part found, or 1 for right and 0 for wrong. Shape (q,).
    """

    kind: Kind
    rows: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Queries:
    """Every query of an evaluation, and its value in every figure that is a mean over queries."""

    asked: Mapping[Kind, Asked]
    values: Mapping[str, PerQuery]

    def save(self, path: Path) -> None:
        """Write everything into an `.npz` file that numpy reads without unpickling."""
        arrays: dict[str, NDArray[np.generic]] = {}
        for kind, asked in self.asked.items():
            arrays |= {f"{kind}/names": asked.names, f"{kind}/groups": asked.groups}
        for figure, each in self.values.items():
            arrays |= {f"{each.kind}/{figure}/rows": each.rows, f"{each.kind}/{figure}/values": each.values}
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            BuildError: the file is missing, damaged, or something else.
        """
        try:
            # Given a path, numpy leaves the file open if it is no archive.
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                arrays = dict(file)
            figures = [name.split("/") for name in arrays if name.endswith("/values")]
            return cls(
                {kind: Asked(arrays[f"{kind}/names"], arrays[f"{kind}/groups"]) for kind in Kind},
                {
                    figure: PerQuery(Kind(kind), arrays[f"{kind}/{figure}/rows"], arrays[f"{kind}/{figure}/values"])
                    for kind, figure, _ in figures
                },
            )
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise BuildError(f"{path} holds no queries of an evaluation: {error}.") from error


def texts(values: Sequence[str]) -> Texts:
    """Return an array of texts, which may be empty."""
    return np.array(list(values), np.str_)


class Grouped:
    """Sums over the groups of an evaluation's queries, as the bootstrap draws them."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries
        self._names, numbers = np.unique(
            np.concatenate([queries.asked[kind].groups for kind in Kind]), return_inverse=True
        )
        ends = np.cumsum([len(queries.asked[kind].groups) for kind in Kind])
        self._numbers = dict(zip(Kind, np.split(numbers, ends[:-1]), strict=True))

    def sums(self, figure: str) -> NDArray[np.float64]:
        """Return the sum of a figure's values over each group."""
        each = self._queries.values[figure]
        numbers = self._numbers[each.kind][each.rows]
        return np.bincount(numbers, each.values, minlength=len(self._names)).astype(np.float64)

    def counts(self, figure: str) -> NDArray[np.float64]:
        """Return how many queries of a figure each group holds."""
        each = self._queries.values[figure]
        numbers = self._numbers[each.kind][each.rows]
        return np.bincount(numbers, minlength=len(self._names)).astype(np.float64)
