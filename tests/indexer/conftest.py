"""What the tests of training share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.samples import Samples, load_samples
from indexer.torch_runtime import torch
from tests import runs
from tests.pictures import POLICY


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw 24 pictures of three labels, and write a table of two captions each."""
    return runs.write_pictures(tmp_path_factory.mktemp("collection"))


@pytest.fixture(scope="session")
def samples(table: Path) -> Samples:
    """Load that table."""
    return load_samples(table, None, POLICY)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sum in one order, as children do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
