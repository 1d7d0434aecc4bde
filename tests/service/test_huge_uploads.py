"""Uploads that are too large, or made of too much, are refused before they cost anything."""

import contextlib
import gzip
import io
import json
import select
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.served import Service, serving
from tests.service.conftest import Library
from tests.trust.figures import noted

MIB = 2**20
GIB = 2**30
QUERY = json.dumps({"query": [{"text": "a red picture"}]}).encode()
JSON = b"Content-Type: application/json\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=edge\r\n"


@pytest.fixture(scope="module")
def service(library: Library) -> Iterator[Service]:
    """Serve in a process of its own, whose memory is measured."""
    with serving(library.snapshots) as service:
        yield service


def sent(service: Service, head: bytes, body: Iterable[bytes] = ()) -> tuple[int, str, int]:
    """Send a request until there is an answer; return its status, its code and how many bytes of a body were sent."""
    size = 0
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(b"POST /v1/search HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + head + b"\r\n")
        with contextlib.suppress(ConnectionError):
            for part in body:
                if select.select([connection], [], [], 0)[0]:
                    break
                connection.sendall(part)
                size += len(part)
        answer = connection.makefile("rb").read()
    told, _, content = answer.partition(b"\r\n\r\n")
    status = int(told.split()[1])
    return status, json.loads(content).get("code", ""), size


def whole(service: Service, kind: bytes, body: bytes) -> tuple[int, str]:
    """Send a body whose length is announced; return the status and the code of the answer."""
    parts = (body[i : i + 2**16] for i in range(0, len(body), 2**16))
    return sent(service, kind + b"Content-Length: %d\r\n" % len(body), parts)[:2]


def form(*parts: bytes) -> bytes:
    return b"".join(b"--edge\r\n%b\r\n" % part for part in parts) + b"--edge--\r\n"


def field(name: bytes, value: bytes, more: bytes = b"") -> bytes:
    return b'Content-Disposition: form-data; name="%b"%b\r\n\r\n%b' % (name, more, value)


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((30, 30, 3), (200, 20, 20), np.uint8)).save(file, "PNG")
    return field(b"file", file.getvalue(), b'; filename="x.png"')


@contextlib.contextmanager
def frugal(service: Service) -> Iterator[list[int]]:
    """Require that the memory of the service never grows by 64 MiB; give by how many MiB it did, in the end."""
    place = Path(f"/proc/{service.process.pid}")

    def peak() -> int:
        return next(int(line.split()[1]) for line in (place / "status").read_text().splitlines() if "VmHWM" in line)

    whole(service, FORM, form(picture()))  # what a first request loads stays
    (place / "clear_refs").write_text("5")  # the peak begins anew
    before, grown = peak(), list[int]()
    yield grown
    grown.append((peak() - before) // 1024)
    assert grown[0] < 64


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
@pytest.mark.parametrize("size", [20 * MIB + 1, GIB, 2**64, 10**40])
def test_a_body_that_is_announced_too_large_is_refused_before_any_of_it(
    service: Service, size: int, expect: bytes
) -> None:
    assert sent(service, JSON + expect + b"Content-Length: %d\r\n" % size)[:2] in {
        (413, "body_too_large"),
        (400, "bad_request"),  # what no machine can count
    }


def test_ten_gibibytes_that_are_announced_are_not_read(service: Service) -> None:
    with frugal(service) as grown:
        head = FORM + b"Content-Length: %d\r\n" % (10 * GIB)
        status, _, size = sent(service, head, (b" " * MIB for _ in range(10 * 1_024)))
    assert status == 413
    assert size < 64 * MIB
    noted(promise="R13", figure=f"10 GiB announced: 413 after {size // MIB} MiB, memory +{grown[0]} MiB at most")


@pytest.mark.parametrize("kind", [JSON, FORM])
def test_what_comes_in_chunks_is_refused_as_soon_as_it_is_too_large(service: Service, kind: bytes) -> None:
    chunk = b"%x\r\n%b\r\n" % (MIB, b" " * MIB)
    with frugal(service) as grown:
        head = kind + b"Transfer-Encoding: chunked\r\n"
        status, code, size = sent(service, head, (chunk for _ in range(10 * 1_024)))
    assert (status, code) == (413, "request_entity_too_large")
    assert size < 64 * MIB
    noted(promise="R13", figure=f"10 GiB in chunks: 413 after {size // MIB} MiB, memory +{grown[0]} MiB at most")


def test_both_lengths_at_once_are_refused(service: Service) -> None:
    head = JSON + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n"
    assert sent(service, head, [b"2\r\n{}\r\n0\r\n\r\n"])[:2] == (400, "bad_request")


@pytest.mark.parametrize("head", [b"X: y\r\n" * 100_000, b"X: " + b"y" * MIB + b"\r\n", b"X" * MIB + b": y\r\n"])
def test_too_many_headers_are_refused(service: Service, head: bytes) -> None:
    with frugal(service):
        parts = [head[i : i + 2**14] for i in range(0, len(head), 2**14)]
        assert sent(service, JSON.rstrip(), parts)[:2] == (431, "headers_too_large")


def test_an_endless_trailer_is_refused(service: Service) -> None:
    head = JSON + b"Transfer-Encoding: chunked\r\n"
    body = [b"2\r\n{}\r\n0\r\n", *[b"X: %b\r\n" % (b"y" * 1_000)] * 100_000]
    with frugal(service) as grown:
        status, _, size = sent(service, head, body)
    assert status == 431
    assert size < 16 * MIB
    noted(promise="R13", figure=f"endless trailer: 431 after {size / MIB:.1f} MiB, memory +{grown[0]} MiB at most")


@pytest.mark.parametrize(
    "body",
    [
        b"x" * 10 * MIB + b"\r\n" + form(picture()),
        form(picture()) + b"x" * 10 * MIB,
        b"\r\n" * 2_000_000 + form(picture()),
        b"--edg" * 2_000_000 + b"\r\n" + form(picture()),
    ],
    ids=["before", "after", "empty lines", "almost the boundary"],
)
def test_what_is_around_the_parts_of_a_form_changes_nothing_or_is_refused(service: Service, body: bytes) -> None:
    with frugal(service):
        assert whole(service, FORM, body)[0] in {200, 400}


def test_a_form_of_too_much_is_refused(service: Service) -> None:
    bodies = {
        "fields": form(*[field(b"a", b"1")] * 100_000),
        "files": form(*[field(b"file", b"1", b'; filename="x"')] * 100_000),
        "headers of a part": form(b"X: y\r\n" * 100_000 + field(b"a", b"1")),
        "a long header": form(b"X: " + b"y" * 10 * MIB + b"\r\n" + field(b"a", b"1")),
        "a long name": form(field(b"a" * 10 * MIB, b"1")),
        "a long field": form(field(b"limit", b"1" * 10 * MIB)),
    }
    with frugal(service) as grown:
        assert {name: whole(service, FORM, body)[0] for name, body in bodies.items()} == dict.fromkeys(bodies, 400)
    noted(promise="R13", figure=f"{len(bodies)} forms of too much: each 400, memory +{grown[0]} MiB at most")


def test_a_form_in_a_form_is_not_opened(service: Service) -> None:
    inner = form(picture())
    for _ in range(1_000):
        inner = form(b"Content-Type: multipart/mixed; boundary=edge\r\n" + field(b"file", inner, b'; filename="x"'))
    assert whole(service, FORM, inner)[0] in {400, 415, 422}


@pytest.mark.parametrize("boundary", [b"", b"; boundary=", b"; boundary=" + b"e" * 10_000, b"; boundary=\xff"])
def test_a_form_needs_a_boundary(service: Service, boundary: bytes) -> None:
    kind = b"Content-Type: multipart/form-data%b\r\n" % boundary
    assert whole(service, kind, form(picture()))[0] == 400


@pytest.mark.parametrize("kind", [JSON, FORM])
def test_a_packed_body_is_not_unpacked(service: Service, kind: bytes) -> None:
    bomb = gzip.compress(b" " * 100 * MIB)
    with frugal(service):
        assert whole(service, kind + b"Content-Encoding: gzip\r\n", bomb)[0] in {400, 415, 422}


def test_the_service_answers_as_ever_after_all_this(service: Service) -> None:
    assert whole(service, JSON, QUERY)[0] == 200
    assert whole(service, FORM, form(picture()))[0] == 200
