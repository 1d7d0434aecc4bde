"""One S3 server for all tests, and one collection in every form that a source may have."""

import csv
import io
import json
import logging
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.core import url_to_fs
from moto.server import ThreadedMotoServer

from tests.pictures import encode, quarters

PICTURES = {
    "first.png": encode(quarters(), "PNG"),
    "blue/0.jpg": encode(quarters(8, 8), "JPEG"),
    "blue/0.png": encode(quarters(9, 9), "PNG"),
    "blue/deep/é ü.webp": encode(quarters(10, 10), "WEBP"),
    "blue/v1.2 at 10.30.png": encode(quarters(11, 11), "PNG"),
    "red/a?b#c%20d::e&f.gif": encode(quarters(12, 12), "GIF"),
    "red/a=b,c.bmp": encode(quarters(13, 13), "BMP"),
}
"""Names that some form or other might stumble over, and no two files of the same bytes."""

HIDDEN = {".DS_Store": b"x", ".cache/0.png": PICTURES["first.png"], "red/._a.png": b"x"}


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Start an S3 server for the session, and return the URL of an empty bucket."""
    logging.getLogger("werkzeug").disabled = True
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in settings.items():
            patch.setenv(name, value)
        url_to_fs("s3://bucket")[0].mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write the collection into a folder, with hidden files in it."""
    root = tmp_path / "collection"
    for name, data in {**PICTURES, **HIDDEN}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def put(url: str, data: bytes) -> None:
    """Write a remote file."""
    root, _, name = url.partition("/~/")
    file_system, path = url_to_fs(root)
    file_system.pipe_file(f"{path}/{name}" if name else path, data)


def tar_of(folder: Path) -> bytes:
    """Return a tar as `tar -C folder --mtime 0 -c .` writes it: equal for equal files."""

    def timeless(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime = 0
        return member

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(folder, ".", filter=timeless)
    return buffer.getvalue()


def table_of(rows: list[dict[str, Any]], ending: str) -> bytes:
    """Return rows as a file of this ending."""
    if ending == ".txt":
        return "".join(f"{row['path']}\n" for row in rows).encode()
    if ending == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if ending == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    import pyarrow as pa  # noqa: PLC0415 - as large as it is, one form needs it
    from pyarrow import parquet  # noqa: PLC0415

    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()
