"""Shard files in an S3 bucket."""

import pickle
from pathlib import Path

import pytest
from fsspec.core import url_to_fs

from indexer.errors import BuildError, CorruptShard, Reason
from indexer.shard_bucket import ShardBucket
from indexer.shards import ShardFolder, SkippedPicture, read_shard_file, write_shard

ROWS = [SkippedPicture("a/é.png", Reason.EMPTY, "The file is empty.")]


def test_a_shard_file_in_a_bucket_is_that_in_a_folder(s3: str, tmp_path: Path) -> None:
    bucket = pickle.loads(pickle.dumps(ShardBucket(f"{s3}/shards")))  # noqa: S301 - it travels to other machines
    stored = write_shard(bucket, "1f", ROWS)
    assert stored == write_shard(ShardFolder(tmp_path), "1f", ROWS)
    assert read_shard_file(bucket, "1f", stored.sha256) == ROWS
    file_system, path = url_to_fs(f"{s3}/shards/1f.parquet")
    assert file_system.cat_file(path) == (tmp_path / "1f.parquet").read_bytes()


def test_writing_again_replaces_and_deleting_leaves_nothing(s3: str) -> None:
    bucket = ShardBucket(f"{s3}/again/")
    bucket.write("probe", b"first")
    bucket.write("probe", b"second")
    assert bucket.read("probe") == b"second"
    for _ in range(2):
        bucket.delete("probe")
        with pytest.raises(
            CorruptShard, match=r"The shard probe cannot be read from s3://bucket/again/: .*again/probe"
        ):
            bucket.read("probe")


def test_a_bucket_that_takes_nothing_is_named(s3: str) -> None:
    assert s3
    with pytest.raises(BuildError, match=r"The shard probe cannot be written to s3://nowhere/shards: .*bucket"):
        ShardBucket("s3://nowhere/shards").write("probe", b"")
