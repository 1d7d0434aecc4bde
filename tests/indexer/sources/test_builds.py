"""Whatever form a collection comes in, the same pictures get the same keys and the same embeddings."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from indexer.build import Run, build
from indexer.catalog import ImageRecord
from indexer.encoder import Embeddings, Encoder
from indexer.progress import ProgressStyle, reporter
from indexer.shard_bucket import ShardBucket
from indexer.snapshot import BuildOptions
from indexer.store import SnapshotStore
from indexer.workers import fork_server
from tests.conftest import POLICY, local_run
from tests.indexer.sources.conftest import PICTURES, put, table_of, tar_of


@pytest.fixture
def _fresh_workers(s3: str) -> Iterator[None]:
    """Have workers forked from a process that was told where the S3 server is: it is not there from the start."""
    assert s3
    fork_server.cache_clear()
    yield
    fork_server.cache_clear()


def as_tar(folder: Path, _: str) -> str:
    (folder.parent / "all.tar").write_bytes(tar_of(folder))
    return str(folder.parent / "all.tar")


def as_parquet(folder: Path, _: str) -> str:
    (folder / ".table.parquet").write_bytes(table_of([{"path": name} for name in PICTURES], ".parquet"))
    return str(folder / ".table.parquet")


def as_bucket(folder: Path, url: str) -> str:
    for name in PICTURES:
        put(f"{url}/pictures/~/{name}", (folder / name).read_bytes())
    return f"{url}/pictures"


FORMS: dict[str, Callable[[Path, str], str]] = {
    "folder": lambda folder, _: str(folder),
    "tar": as_tar,
    "Parquet": as_parquet,
    "S3": as_bucket,
}


def built(source: str, snapshots: Path, encoder: Encoder, run: Run) -> tuple[dict[str, ImageRecord], Embeddings]:
    store = SnapshotStore(snapshots)
    build(BuildOptions(sources=(source,)), store, encoder, POLICY, run, reporter(ProgressStyle.PLAIN))
    snapshot = store.open(store.published())
    images = sorted(snapshot.catalog.rows(range(len(snapshot))), key=lambda image: image.path)
    return {image.path: image for image in images}, snapshot.embeddings[[image.row for image in images]]


@pytest.mark.usefixtures("_fresh_workers")
def test_every_form_of_a_collection_gives_the_same_snapshot(
    s3: str, folder: Path, tmp_path: Path, encoder: Encoder
) -> None:
    found = {
        form: built(make(folder, f"{s3}/forms"), tmp_path / form, encoder, local_run(encoder))
        for form, make in FORMS.items()
    }
    images, embeddings = found["folder"]
    assert images.keys() == PICTURES.keys()
    for other, same in found.values():
        assert {key: (image.id, image.content_hash) for key, image in other.items()} == {
            key: (image.id, image.content_hash) for key, image in images.items()
        }
        np.testing.assert_allclose(same, embeddings, atol=1e-6)  # the order of a batch may change the last bits


@pytest.mark.usefixtures("_fresh_workers")
def test_finished_work_may_lie_in_a_bucket_and_is_removed_in_the_end(
    s3: str, folder: Path, tmp_path: Path, encoder: Encoder
) -> None:
    local = local_run(encoder, shard_size=2)
    here = built(str(folder), tmp_path / "here", encoder, local)
    bucket = ShardBucket(f"{s3}/work")
    written = []

    class Watched(ShardBucket):
        def write(self, name: str, data: bytes) -> None:
            written.append(name)
            super().write(name, data)

    there = built(
        str(folder), tmp_path / "there", encoder, Run(local.executor, shard_size=2, shards=Watched(bucket.url))
    )
    assert len(set(written)) == len(written) > 1
    np.testing.assert_array_equal(there[1], here[1])
    for name in written:
        with pytest.raises(Exception, match="cannot be read"):
            bucket.read(name)
