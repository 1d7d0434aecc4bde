"""A running service for the tests of what talks to one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from indexer.encoder import Encoder
from tests.conftest import ADMIN_KEY, build_snapshot, draw_collection
from tests.served import serving


@dataclass(frozen=True)
class Library:
    """A service over two snapshots of the drawn collection, of which the second is current."""

    address: str
    pictures: Path
    snapshots: Path
    ids: tuple[str, str]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Iterator[Library]:
    """Serve, in a process of its own, what no test changes for longer than it takes."""
    folder = tmp_path_factory.mktemp("library")
    draw_collection(folder / "pictures")
    labels = str(folder / "pictures" / "table.csv")
    first, second = (build_snapshot(folder / "pictures", folder / "s", encoder, labels).manifest.id for _ in range(2))
    with serving(folder / "s", KINDRED_ADMIN_KEY=ADMIN_KEY) as service:
        yield Library(service.address, folder / "pictures", folder / "s", (first, second))
