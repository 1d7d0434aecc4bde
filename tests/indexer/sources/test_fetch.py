"""Fetching: every fault of a server is read in spite of, or refused with a reason; nothing hangs (R10)."""

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from indexer.errors import ImageError, Reason
from indexer.sources import fetch as fetching
from indexer.sources.fetch import FetchPolicy, fetch
from indexer.sources.retries import Patience
from tests.faults import (
    FOREVER,
    Fault,
    FaultServer,
    answers,
    chunked,
    drips,
    endless,
    good,
    head,
    late,
    misnumbered,
    redirects,
    resets,
    sends,
    short,
    short_chunk,
    silent,
    unmeasured,
)

BODY = bytes(range(256)) * 40
LIMIT = 20_000


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer(BODY) as running:
        yield running


def policy(*hosts: str, total: float = 5) -> FetchPolicy:
    """Return a policy that loses no time."""
    return FetchPolicy(hosts, connect_seconds=1, read_seconds=0.4, patience=Patience(4, 0.01, total))


def reason(url: str, given: FetchPolicy) -> Reason:
    """Have a URL refused, and return the reason."""
    with pytest.raises(ImageError) as error:
        fetch(url, given, LIMIT)
    assert str(error.value).endswith(".")
    return error.value.reason


RECOVERABLE: dict[str, Fault] = {
    "latency": late,
    "chunked": chunked,
    "no length": unmeasured,
    "length that is no number": misnumbered,
    "closed before the answer": sends(),
    "reset before the answer": resets(None),
    "reset at byte 0": resets(0),
    "reset at byte 1": resets(1),
    "reset in the middle": resets(len(BODY) // 2),
    "reset at the last byte": resets(len(BODY) - 1),
    "short body": short,
    "short chunk": short_chunk,
    "head cut": sends(head(Content_Length=5)[:-12]),
    "no HTTP": sends(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "endless line": sends(b"HTTP/1.1 200 " + b"x" * 100_000),
    "hundreds of headers": sends(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500 + b"\r\n"),
    "silence": silent,
    "408": answers("408 Request Timeout"),
    "429": answers("429 Too Many Requests", Retry_After=0),
    "500": answers("500 Internal Server Error"),
    "502": answers("502 Bad Gateway"),
    "503": answers("503 Service Unavailable", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "503, asking for nonsense": answers("503 Service Unavailable", Retry_After="soon"),
    "504": answers("504 Gateway Timeout"),
}


@pytest.mark.parametrize("name", RECOVERABLE)
def test_a_fault_that_passes_is_read_in_spite_of(server: FaultServer, name: str) -> None:
    assert fetch(server.url(RECOVERABLE[name], times=2), policy(server.host), LIMIT) == BODY


FINAL: dict[str, tuple[Fault, Reason]] = {
    "404": (answers("404 Not Found"), Reason.UNREACHABLE),
    "403": (answers("403 Forbidden"), Reason.UNREACHABLE),
    "204": (answers("204 No Content"), Reason.UNREACHABLE),
    "redirect to nowhere": (answers("302 Found", Location="http://["), Reason.UNREACHABLE),
    "redirects in a circle": (redirects("#"), Reason.UNREACHABLE),
    "empty body": (answers("200 OK"), Reason.EMPTY),
    "length over the limit": (sends(head(Content_Length=LIMIT + 1)), Reason.TOO_MANY_BYTES),
    "endless body": (endless, Reason.TOO_MANY_BYTES),
}


@pytest.mark.parametrize("name", FINAL)
def test_a_fault_that_stays_is_refused_at_once(server: FaultServer, name: str) -> None:
    fault, why = FINAL[name]
    url = server.url(fault, times=FOREVER)
    assert reason(url, policy(server.host)) is why
    assert server.seen[f"/{url.rpartition('/')[2]}"] == (6 if "circle" in name else 1)


@pytest.mark.parametrize("fault", [resets(5), short, answers("503 Busy"), sends(), silent])
def test_a_fault_that_never_passes_is_unreachable_after_four_attempts(server: FaultServer, fault: Fault) -> None:
    url = server.url(fault, times=FOREVER)
    assert reason(url, policy(server.host)) is Reason.UNREACHABLE
    assert server.seen[f"/{url.rpartition('/')[2]}"] == 4


@pytest.mark.parametrize(
    "fault",
    [drips(b""), drips(b"HTTP/1.1 200 OK\r\na: "), drips(head(Content_Length=LIMIT)), drips(head()), silent],
)
def test_whatever_a_server_does_the_deadline_holds(server: FaultServer, fault: Fault) -> None:
    start = time.monotonic()
    patient = replace(policy(server.host, total=0.6), read_seconds=30)
    assert reason(server.url(fault, times=FOREVER), patient) is Reason.UNREACHABLE
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize("wait", [3600, "9" * 400, "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_a_server_that_asks_for_hours_is_given_up(server: FaultServer, wait: object) -> None:
    start = time.monotonic()
    url = server.url(answers("429 Too Many Requests", Retry_After=wait), times=FOREVER)
    assert reason(url, policy(server.host)) is Reason.UNREACHABLE
    assert time.monotonic() - start < 1


def test_a_server_is_left_alone_for_as_long_as_it_asks(server: FaultServer) -> None:
    start = time.monotonic()
    assert fetch(server.url(answers("503 Busy", Retry_After=1)), policy(server.host), LIMIT) == BODY
    assert time.monotonic() - start >= 1


def test_a_closed_port_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
    assert reason(f"http://{host}/", policy(host)) is Reason.UNREACHABLE


@pytest.mark.parametrize(("code", "lookups"), [(socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 4)])
def test_a_name_that_cannot_be_looked_up_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, code: int, lookups: int
) -> None:
    asked = []

    def fail(host: str, *_: object) -> None:
        asked.append(host)
        raise socket.gaierror(code, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert reason("http://images.example.com/a.png", policy("*")) is Reason.UNREACHABLE
    assert asked == ["images.example.com"] * lookups


def test_a_body_of_just_the_limit_is_read_and_a_byte_more_is_not(server: FaultServer) -> None:
    for fault in (good, chunked, unmeasured):
        url = server.url(fault, times=FOREVER)
        assert fetch(url, policy(server.host), len(BODY)) == BODY
        with pytest.raises(ImageError) as error:
            fetch(url, policy(server.host), len(BODY) - 1)
        assert error.value.reason is Reason.TOO_MANY_BYTES


def test_redirects_are_followed_to_hosts_that_are_allowed(server: FaultServer) -> None:
    there = server.url(good, path="/folder/there.png?size=1")
    for location in (there, "there.png?size=1", "/folder/there.png?size=1", f"//{server.host}/folder/there.png?size=1"):
        url = server.url(redirects(location), path="/folder/here.png", times=FOREVER)
        assert fetch(url, policy(server.host), LIMIT) == BODY
    assert server.seen["/folder/there.png?size=1"] == 4


def test_a_path_that_is_no_ascii_is_asked_for_as_browsers_do(server: FaultServer) -> None:
    assert fetch(f"http://{server.host}/ü/100%25/a|b.png?q=ß#part", policy(server.host), LIMIT) == BODY
    assert server.seen["/%C3%BC/100%25/a%7Cb.png?q=%C3%9F"] == 1


def certify(folder: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """Return a server's context with a certificate of its own making for `name`, and the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    alternative = x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
    certificate = (
        x509.CertificateBuilder(issuer, issuer, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "certificate.pem"
    path.write_bytes(certificate.public_bytes(pem) + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context, path


@pytest.fixture
def _fresh_trust() -> Iterator[None]:
    fetching._tls.cache_clear()
    yield
    fetching._tls.cache_clear()


@pytest.mark.usefixtures("_fresh_trust")
def test_https_is_read_where_the_certificate_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, certificate = certify(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with FaultServer(BODY, context) as server:
        assert fetch(server.url(good), policy(server.host), LIMIT) == BODY
        assert fetch(server.url(resets(100), times=2), policy(server.host), LIMIT) == BODY


@pytest.mark.usefixtures("_fresh_trust")
@pytest.mark.parametrize(("name", "trusted"), [("127.0.0.1", False), ("127.0.0.2", True), ("localhost", True)])
def test_a_certificate_that_proves_nothing_is_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, trusted: bool
) -> None:
    context, certificate = certify(tmp_path, name)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with FaultServer(BODY, context) as server:
        assert reason(server.url(good), policy(server.host)) is Reason.UNREACHABLE
        assert not server.seen


def test_a_port_that_speaks_no_tls_is_unreachable(server: FaultServer) -> None:
    url = server.url(good).replace("http:", "https:")
    assert reason(url, policy(server.host, total=0.5)) is Reason.UNREACHABLE
