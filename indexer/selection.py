"""Selection: rows that a search may answer with."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Selection:
    """A set of rows, one bit each: a million rows take 125 kB.

    Attributes:
        bits: row r is in the set if bit `r % 8` of byte `r // 8` is set; uint8, shape (ceil(rows / 8),).
        count: how many rows are in the set.
    """

    bits: NDArray[np.uint8]
    count: int

    @classmethod
    def of(cls, rows: Iterable[int] | NDArray[np.int64], total: int) -> Self:
        """Make a selection of `rows`, in any order, from `total` rows."""
        chosen = np.zeros(total, np.bool_)
        chosen[np.fromiter(rows, np.int64) if not isinstance(rows, np.ndarray) else rows] = True
        return cls(np.packbits(chosen, bitorder="little"), int(chosen.sum()))

    def rows(self) -> NDArray[np.int64]:
        """Return the rows in ascending order, shape (count,)."""
        return np.flatnonzero(np.unpackbits(self.bits, bitorder="little"))

    def after(self, row: int, limit: int) -> list[int]:
        """Return the first rows of the set that are above `row`, ascending, `limit` at most."""
        rows = self.rows()
        found: list[int] = rows[rows > row][:limit].tolist()
        return found
