"""Fetching pictures by http(s), from allowed hosts only; the door to ssrfguard and to HTTP.

Whoever writes a table of URLs decides where this machine connects to, so (SSRF): a name is resolved once; if any of its
addresses is private, local or a cloud's own, nothing is connected to; what is connected to is the very address that was
judged; and every redirect is judged anew. Proxies and the environment have no say.
"""

import http.client
import io
import re
import socket
import ssl
import time
from contextlib import closing
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Self, cast
from urllib.parse import quote, urljoin, urlsplit

import ssrfguard

from indexer.errors import ImageError, Reason
from indexer.settings import Settings
from indexer.sources.hosts import guards
from indexer.sources.retries import Patience, Transient, persist

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_BUSY = (408, 425, 429)
_BLOCK = 2**18
_HTTP = re.compile("https?://", re.IGNORECASE)
_HEADERS = {"User-Agent": "kindred", "Accept": "image/*", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class FetchPolicy:
    """Where pictures may be fetched from, and how long it may take.

    Attributes:
        hosts: `*` for every public host, `host`, `*.host` for those below it, each with `:port` where the port is
            neither 80 nor 443. A private address is allowed only where it is written as such (`10.0.0.5`, `[::1]:8000`)
            or as `localhost`; a name that resolves to one never is.
        connect_seconds: for each of up to four addresses of a host.
        read_seconds: of silence.
        patience: attempts, and seconds for all of them.
        within: the folders and URLs that the rows of a table may name files and objects in, besides the table's own
            folder; anywhere where there are none.
    """

    hosts: tuple[str, ...] = ()
    connect_seconds: float = 10
    read_seconds: float = 20
    patience: Patience = field(default_factory=Patience)
    within: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        guards(self.hosts)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the policy of a deployment.

        Raises:
            BuildError: an entry of `fetch_hosts` is no host.
        """
        return cls(settings.fetch_hosts)


def is_http(name: str) -> bool:
    """Tell whether a name is for `fetch`."""
    return _HTTP.match(name) is not None


def fetch(url: str, policy: FetchPolicy, max_bytes: int) -> bytes:
    """Return what a URL holds; safe to call from several threads.

    Raises:
        ImageError: it may not be fetched, is too large, or stays unreachable.
    """
    try:
        return persist(lambda deadline: _attempt(url, policy, max_bytes, deadline), policy.patience)
    except Transient as error:
        raise ImageError(Reason.UNREACHABLE, f"{url} cannot be fetched: {error}.") from error


def _attempt(url: str, policy: FetchPolicy, max_bytes: int, deadline: float) -> bytes:
    try:
        return _follow(url, policy, max_bytes, deadline)
    except (ssl.SSLCertVerificationError, http.client.InvalidURL) as error:
        raise ImageError(Reason.UNREACHABLE, f"{url} cannot be fetched: {error}.") from error
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            raise ImageError(Reason.UNREACHABLE, f"{url} cannot be fetched: its host does not exist.") from error
        raise Transient(f"its host cannot be looked up ({error})") from error
    except (OSError, http.client.HTTPException) as error:
        raise Transient(str(error) or type(error).__name__) from error


def _follow(url: str, policy: FetchPolicy, max_bytes: int, deadline: float) -> bytes:
    where = url
    for _ in range(_MOST_REDIRECTS + 1):
        guard, target = _admit(where, policy)
        with closing(_connect(guard, target, policy, deadline)) as sock:
            response = _request(where, target, _Wire(sock, policy.read_seconds, deadline))
            if response.status == http.HTTPStatus.OK:
                return _body(response, max_bytes)
            if response.status not in _REDIRECTS:
                raise _refused(response, url)
            where = _next(where, response, url)
    raise ImageError(Reason.UNREACHABLE, f"{url} is redirected more than {_MOST_REDIRECTS} times.")


def _admit(url: str, policy: FetchPolicy) -> tuple[ssrfguard.Policy, ssrfguard.Target]:
    """Judge a URL by all that can be told without asking the network."""
    if not policy.hosts:
        raise ImageError(Reason.FORBIDDEN_ADDRESS, "URLs are fetched only from the hosts in KINDRED_FETCH_HOSTS.")
    reasons: list[str] = []
    for guard in guards(policy.hosts):
        try:
            return guard, guard.check_url(url)
        except ssrfguard.BlockedURLError as error:
            reasons.append(error.reason)
    allowed = ", ".join(policy.hosts)
    detail = f"{url!r} may not be fetched: {reasons[-1]}. KINDRED_FETCH_HOSTS allows {allowed}."
    raise ImageError(Reason.FORBIDDEN_ADDRESS, detail)


def _connect(guard: ssrfguard.Policy, target: ssrfguard.Target, policy: FetchPolicy, deadline: float) -> socket.socket:
    """Connect to an address that was judged, and start TLS for https."""
    try:
        addresses = ssrfguard.resolve(target, policy=guard)
        sock = ssrfguard.connect(addresses, policy=guard, timeout=_left(policy.connect_seconds, deadline))
    except ssrfguard.BlockedAddressError as error:
        detail = f"{target.host} may not be connected to: {error.reason}."
        raise ImageError(Reason.FORBIDDEN_ADDRESS, detail) from error
    if target.scheme == "http":
        return sock
    try:
        sock.settimeout(_left(policy.connect_seconds, deadline))
        return _tls().wrap_socket(sock, server_hostname=target.host.rstrip("."))
    except BaseException:
        sock.close()
        raise


def _request(url: str, target: ssrfguard.Target, wire: "_Wire") -> http.client.HTTPResponse:
    """Ask for a URL on an open connection, by the name that was judged."""
    kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
    connection = kind(target.host.rstrip("."), target.port)
    connection.sock = cast("Any", wire)
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", quote(path, safe="%/?:@!$&'()*+,;=-._~[]"), headers=_HEADERS)
    return connection.getresponse()


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    if response.length is not None and response.length > max_bytes:
        detail = f"The file has {response.length:,} bytes; the limit is {max_bytes:,}."
        raise ImageError(Reason.TOO_MANY_BYTES, detail)
    data = bytearray()
    while block := response.read(_BLOCK):
        data += block
        if len(data) > max_bytes:
            raise ImageError(Reason.TOO_MANY_BYTES, f"The file has more bytes than the limit of {max_bytes:,}.")
    if response.length:
        raise Transient(f"the connection ended {response.length:,} bytes early")
    if not data:
        if "Content-Length" not in response.headers:
            # http.client takes a head that was cut off for a whole one.
            raise Transient("the connection ended before the file began")
        raise ImageError(Reason.EMPTY, "The file is empty.")
    return bytes(data)


def _refused(response: http.client.HTTPResponse, url: str) -> Exception:
    answer = f"the answer is {response.status} {response.reason}".rstrip()
    if response.status in _BUSY or response.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        return Transient(answer, _retry_after(response.headers.get("Retry-After", "")))
    return ImageError(Reason.UNREACHABLE, f"{url} cannot be fetched: {answer}.")


def _retry_after(text: str) -> float:
    """Return the seconds that a server asks to be left alone, given as such or as a date."""
    try:
        return float(int(text)) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0


def _next(where: str, response: http.client.HTTPResponse, url: str) -> str:
    location = response.headers.get("Location")
    try:
        return urljoin(where, location or "")
    except ValueError:
        raise ImageError(Reason.UNREACHABLE, f"{url} is redirected to {location!r}, which is no URL.") from None


def _left(seconds: float, deadline: float) -> float:
    """Return how long to wait, of `seconds` and what is left until the deadline."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("it takes too long")
    return min(seconds, left)


@cache
def _tls() -> ssl.SSLContext:
    # One for the process: reading the certificates of all authorities takes longer than most fetches.
    return ssl.create_default_context()


class _Wire:
    """A socket as `http.client` uses one, that keeps a deadline whatever little is sent at a time."""

    def __init__(self, sock: socket.socket, seconds: float, deadline: float) -> None:
        self._sock = sock
        self._seconds = seconds
        self._deadline = deadline

    def ready(self) -> socket.socket:
        self._sock.settimeout(_left(self._seconds, self._deadline))
        return self._sock

    def sendall(self, data: bytes) -> None:
        self.ready().sendall(data)

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """Leave the socket open: http.client closes its connection before the answer is read."""


class _Reader(io.RawIOBase):
    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._wire.ready().recv_into(buffer)
