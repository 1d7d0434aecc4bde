"""A collection that changes, and whose right index is known without building one."""

import csv
import hashlib
import os
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from indexer.errors import Reason
from tests.pictures import encode, quarters

_BROKEN = {
    Reason.EMPTY: b"",
    Reason.NOT_AN_IMAGE: b"<!DOCTYPE html><title>Not found</title>",
    Reason.UNREADABLE: encode(quarters(), "PNG")[:-40],
}
_LONG_AGO = 1_700_000_000


@dataclass(frozen=True)
class Entry:
    """A file of the collection, and what an index must say of it; one with a `reason` must be skipped."""

    data: bytes
    label: str
    caption: str
    reason: Reason | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the file, in hex."""
        return hashlib.sha256(self.data).hexdigest()


class Collection:
    """Files in `folder`, described by the table `table` beside it; every draw and every change is of one seed."""

    def __init__(self, folder: Path, count: int, seed: int) -> None:
        self.folder = folder
        self.table = folder.with_suffix(".csv")
        self.entries: dict[str, Entry] = {}
        self._random = random.Random(seed)
        self._drawn = 0
        self._add(count)
        self._write_table()

    @property
    def pictures(self) -> dict[str, Entry]:
        """The files that must be in the index, by path."""
        return {path: entry for path, entry in self.entries.items() if entry.reason is None}

    @property
    def broken(self) -> dict[str, Reason]:
        """Why each other file must be skipped, by path."""
        return {path: entry.reason for path, entry in self.entries.items() if entry.reason is not None}

    def change(self, count: int) -> None:
        """Add, draw anew, remove and move so many files of each."""
        paths = self._random.sample(sorted(self.entries), 3 * count)
        for path in paths[:count]:
            self._put(path, self._draw())
        for path in paths[count : 2 * count]:
            self._remove(path)
        for path in paths[2 * count :]:
            self._put(f"moved/{self._drawn:04}-{Path(path).name}", self._remove(path))
        self._add(count)
        self._write_table()

    def _add(self, count: int) -> None:
        """Draw files: one in eight is a copy of another one, one in ten is broken."""
        for _ in range(count):
            name = f"{self._random.choice('abc')}/{self._drawn:04}"
            chance = self._random.random()
            if chance < 1 / 10 and self._drawn > 2:
                reason, data = self._random.choice(list(_BROKEN.items()))
                self._put(f"{name}.png", Entry(data, "broken", name, reason))
            elif chance < 1 / 10 + 1 / 8 and self.pictures:
                copied = self.pictures[self._random.choice(sorted(self.pictures))]
                self._put(f"{name}.png", Entry(copied.data, "copy", name))
            else:
                self._put(f"{name}.png", self._draw())

    def _draw(self) -> Entry:
        """Draw coarse patches of random colours, which no other picture of the collection resembles."""
        patches = np.random.default_rng(self._random.getrandbits(64)).integers(0, 256, (4, 4, 3), np.uint8)
        image = Image.fromarray(patches).resize((56, 40), Image.Resampling.NEAREST)
        self._drawn += 1
        return Entry(encode(image, "PNG"), "drawn", f"picture {self._drawn}")

    def _put(self, path: str, entry: Entry) -> None:
        self._drawn += 1
        self.entries[path] = entry
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(entry.data)
        # Builds trust no time of change that is but a moment ago, and so would differ by when they looked.
        os.utime(place, (_LONG_AGO + self._drawn, _LONG_AGO + self._drawn))

    def _remove(self, path: str) -> Entry:
        (self.folder / path).unlink()
        return self.entries.pop(path)

    def _write_table(self) -> None:
        with self.table.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "label", "caption"])
            rows.writerows([path, entry.label, entry.caption] for path, entry in self.entries.items())
