"""Shard files hold what came of pictures, exactly, and a damaged one is found out."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import CorruptShard, Reason
from indexer.shards import EncodedPicture, PictureFacts, Row, ShardFolder, SkippedPicture, read_shard_file, write_shard

FACTS = PictureFacts(
    content_hash="ab" * 32,
    size=71,
    media_type="image/png",
    width=3,
    height=2,
    perceptual_hash=2**64 - 1,
    thumbnail=b"\xff\xd8\x00jpeg",
)
GREY = EncodedPicture("a/grey.png", FACTS, np.array([0.6, -0.8], np.float32), encoded=True)
BROKEN = SkippedPicture("a/brøken.png", Reason.UNREADABLE, "The picture is damaged.")


def same(one: Row, other: Row) -> bool:
    if isinstance(one, EncodedPicture) and isinstance(other, EncodedPicture):
        return one.vector.tobytes() == other.vector.tobytes() and (one.key, one.facts, one.encoded) == (
            other.key,
            other.facts,
            other.encoded,
        )
    return one == other


KEYS = st.text(st.characters(exclude_categories=["Cs"]))
ENCODED = st.builds(
    EncodedPicture,
    key=KEYS,
    facts=st.builds(
        PictureFacts,
        content_hash=st.binary(min_size=32, max_size=32).map(bytes.hex),
        size=st.integers(0, 2**40),
        media_type=st.just("image/png"),
        width=st.integers(1, 2**31 - 1),
        height=st.integers(1, 2**31 - 1),
        perceptual_hash=st.integers(0, 2**64 - 1),
        thumbnail=st.binary(max_size=20),
    ),
    vector=st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3).map(lambda row: np.array(row, np.float32)),
    encoded=st.booleans(),
)
SKIPPED = st.builds(SkippedPicture, key=KEYS, reason=st.sampled_from(Reason), detail=st.just("x"))


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(ENCODED | SKIPPED, max_size=8))
def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    store = ShardFolder(tmp_path_factory.mktemp("shards"))
    file = write_shard(store, "one", rows)
    again = read_shard_file(store, "one", file.sha256)
    assert len(again) == len(rows)
    assert all(map(same, rows, again))
    assert file.pictures == len(rows)


def test_a_shard_file_tells_its_hash_and_its_counts(tmp_path: Path) -> None:
    reused = replace(GREY, key="b", encoded=False)
    file = write_shard(ShardFolder(tmp_path), "one", [GREY, reused, reused, BROKEN])
    assert file.sha256 == hashlib.sha256((tmp_path / "one.parquet").read_bytes()).hexdigest()
    assert (file.encoded, file.reused, file.skipped) == (1, 2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["one.parquet"]


def test_any_tool_reads_a_shard_file(tmp_path: Path) -> None:
    write_shard(ShardFolder(tmp_path), "one", [GREY, BROKEN])
    columns = pq.read_table(tmp_path / "one.parquet").to_pydict()
    assert columns["key"] == ["a/grey.png", "a/brøken.png"]
    assert columns["reason"] == [None, "unreadable"]
    np.testing.assert_array_equal(columns["vector"][0], np.array([0.6, -0.8], np.float32))
    assert columns["perceptual_hash"] == [2**64 - 1, None]


def test_a_shard_that_is_gone_or_changed_is_refused(tmp_path: Path) -> None:
    store = ShardFolder(tmp_path)
    file = write_shard(store, "one", [GREY])
    path = tmp_path / "one.parquet"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"x", bytes([whole[0] ^ 1]) + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptShard, match="has changed since it was written"):
            read_shard_file(store, "one", file.sha256)
    store.delete("one.parquet")
    with pytest.raises(CorruptShard, match="cannot be read: No such file"):
        read_shard_file(store, "one", file.sha256)
