"""No packet goes to a forbidden address, whatever a URL, a resolver or a redirect says (R17).

`connect` of every socket is watched, and refuses: what is not in its list was not connected to.
"""

import socket
from collections import Counter
from collections.abc import Iterator
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import BuildError, ImageError, Reason
from indexer.sources.fetch import FetchPolicy, fetch
from indexer.sources.retries import Patience
from tests.faults import FOREVER, FaultServer, redirects
from tests.trust.figures import noted, sized

PATIENCE = Patience(attempts=3, wait_seconds=0.001, total_seconds=5)
PUBLIC = "93.184.215.14"
PUBLIC_6 = "2606:4700:4700::1111"

_FORBIDDEN_4 = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 127.0.0.1 127.1.2.3 169.254.0.23 169.254.169.254
    169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.8 192.0.0.170 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1
    192.168.255.255 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255
    168.63.129.16 161.26.0.10 166.9.8.7 199.36.153.5 199.36.153.10
"""
FORBIDDEN_4 = _FORBIDDEN_4.split()
_FORBIDDEN_6 = """
    :: ::1 ::127.0.0.1 ::10.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1
    64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b::10.1.2.3 64:ff9b:1::7f00:1 100::1 2001::1 2001:0:7f00:1::1
    2001:db8::1 2001:10::1 2002:7f00:1:: 2002:a00:1:: 2002:a9fe:a9fe::1 2002:c0a8:1:: fc00::1 fd00:ec2::254 fd20:ce::254
    fe80::1 fe80::5efe:127.0.0.1 fec0::1 ff02::1 ff0e::1
"""
FORBIDDEN_6 = _FORBIDDEN_6.split()
_DISGUISED = """
    2130706433 0x7f000001 017700000001 0177.0.0.1 0x7f.0.0.1 127.1 127.0.1 0 1 010.0.0.1 3232235521 127.0.0.1.
    127.0.0.01 ①②⑦.0.0.1 127。0。0。1 127\uff0e0\uff0e0\uff0e1 ⓛⓞⓒⓐⓛⓗⓞⓢⓣ localhost localhost. LOCALHOST
    127.0.0.1%2f 127.0.0.1%00.example.com
    [fe80::1%25eth0] [::1%lo] [::ffff:7f00:1] [0:0:0:0:0:ffff:127.0.0.1] [::127.1]
"""
DISGUISED = _DISGUISED.split()
PATHS = ("http:///etc/passwd", "http:/127.0.0.1/")
"""What is a path on the same host, where a redirect says so."""

URLS = [
    *(f"http://{address}/a.png" for address in (*FORBIDDEN_4, *DISGUISED)),
    *(f"http://[{address}]/a.png" for address in FORBIDDEN_6),
    "http://images.example.com@127.0.0.1/",
    "http://127.0.0.1@images.example.com/",
    "http://user:secret@images.example.com/",
    "http://images.example.com:secret@127.0.0.1/",
    "http://images.example.com\\@127.0.0.1/",
    "http://127.0.0.1\\@images.example.com/",
    "http://127.0.0.1#@images.example.com/",
    "http://127.0.0.1?@images.example.com/",
    "http://images.example.com:22/",
    "http://images.example.com:8080/",
    "https://images.example.com:6379/",
    "http://images.example.com:0/",
    "http://images.example.com:99999/",
    "http://images.example.com:x/",
    *PATHS,
    "http://",
    "https:127.0.0.1/",
    "//127.0.0.1/",
    "http://[::1/",
    "http://.127.0.0.1/",
    "http://127.0.0.1\t/",
    "http://images.example.com\n.127.0.0.1/",
    " http://127.0.0.1/",
    "http://images.example.com/" + "x" * 10_000,
    "http://" + "x." * 200 + "com/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "ftp://images.example.com/",
    "data:image/png;base64,AAAA",
    "dict://127.0.0.1:11211/",
    "unix:///run/docker.sock",
]


class Net:
    """A resolver that answers as it is told, and sockets that connect to the allowed port only."""

    def __init__(self) -> None:
        self.names: dict[str, list[list[str]]] = {"localhost": [["127.0.0.1", "::1"]]}
        self.connected: list[str] = []
        self.asked: list[str] = []
        self.allowed: int | None = None

    @classmethod
    def put_in(cls, monkeypatch: pytest.MonkeyPatch) -> Self:
        """Take the place of the network: every connection that is begun is noted."""
        watched = cls()
        connect = socket.socket.connect

        def watch(self: socket.socket, address: tuple[object, ...]) -> None:
            watched.connected.append(str(address[0]))
            if address[1] != watched.allowed:
                raise ConnectionRefusedError
            connect(self, address)

        monkeypatch.setattr(socket.socket, "connect", watch)
        monkeypatch.setattr(socket.socket, "connect_ex", watch)
        monkeypatch.setattr(socket, "getaddrinfo", watched.resolve)
        return watched

    def resolve(self, host: str, port: int, *_: object) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
        """Stand in for getaddrinfo: each lookup of a name takes the next of its answers, and then the last again."""
        self.asked.append(host)
        answers = self.names.get(host.rstrip("."), [[host.strip("[]")]])
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [self._row(address, port) for address in addresses]

    @staticmethod
    def _row(address: str, port: int) -> tuple[int, int, int, str, tuple[object, ...]]:
        if ":" in address:
            return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0)
        # As getaddrinfo does, it reads `127.1`, `0x7f000001` and the like as addresses.
        return socket.AF_INET, socket.SOCK_STREAM, 6, "", (socket.inet_ntoa(socket.inet_aton(address)), port)


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    return Net.put_in(monkeypatch)


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer(b"public") as running:
        yield running


def refused(url: str, *hosts: str) -> Reason:
    """Have a URL refused, and return the reason."""
    with pytest.raises(ImageError) as error:
        fetch(url, FetchPolicy(hosts, patience=PATIENCE), 1000)
    return error.value.reason


def test_the_matrix_has_the_size_that_was_promised() -> None:
    assert len(set(URLS)) >= 60


@pytest.mark.parametrize("url", URLS)
def test_a_forbidden_url_reaches_nothing(net: Net, url: str) -> None:
    assert refused(url, "*") is Reason.FORBIDDEN_ADDRESS
    assert net.connected == []


@pytest.mark.parametrize("address", [*FORBIDDEN_4, *FORBIDDEN_6])
def test_a_name_of_a_forbidden_address_reaches_nothing_alone_or_among_good_ones(net: Net, address: str) -> None:
    net.names = {
        "alone.example.com": [[address]],
        "first.example.com": [[address, PUBLIC, PUBLIC_6]],
        "last.example.com": [[PUBLIC, PUBLIC_6, address]],
    }
    for name in net.names:
        for hosts in (["*"], [name], ["*.example.com"], [f"{name}:80"]):
            assert refused(f"http://{name}/a.png", *hosts) is Reason.FORBIDDEN_ADDRESS
    assert net.connected == []


@pytest.mark.parametrize("address", [*FORBIDDEN_4, *FORBIDDEN_6])
def test_a_name_that_is_rebound_is_asked_for_once_for_each_attempt_and_never_followed(net: Net, address: str) -> None:
    net.names = {"rebound.example.com": [[PUBLIC], [address]]}
    assert refused("http://rebound.example.com/a.png", "*") is Reason.FORBIDDEN_ADDRESS
    assert net.connected == [PUBLIC]
    assert net.asked == ["rebound.example.com"] * 2


@pytest.mark.parametrize("url", [url for url in URLS if url not in PATHS])
def test_a_redirect_to_a_forbidden_url_reaches_nothing(net: Net, server: FaultServer, url: str) -> None:
    net.allowed = server.port
    # What a header cannot hold, a server cannot send.
    location = url.replace("\n", "").encode().decode("latin-1")
    start = server.url(redirects(location), times=FOREVER)
    assert refused(start, server.host, "*") in {Reason.FORBIDDEN_ADDRESS, Reason.UNREACHABLE}
    assert set(net.connected) == {"127.0.0.1"}
    assert net.connected.count("127.0.0.1") <= 6
    assert not server.seen["/"]
    assert not server.seen["/a.png"]


def test_a_chain_of_redirects_is_judged_at_every_step(net: Net, server: FaultServer) -> None:
    net.allowed = server.port
    url = "http://169.254.169.254/latest/meta-data/"
    for _ in range(4):
        url = server.url(redirects(url), times=FOREVER)
    assert refused(url, server.host) is Reason.FORBIDDEN_ADDRESS
    assert net.connected == ["127.0.0.1"] * 4
    for _ in range(4):
        url = server.url(redirects(url), times=FOREVER)
    assert refused(url, server.host) is Reason.UNREACHABLE


def test_a_listening_port_hears_nothing(server: FaultServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0.1)
        port = canary.getsockname()[1]
        for host in ("127.0.0.1", "localhost", "0.0.0.0", "2130706433", "[::ffff:127.0.0.1]", "127.1"):  # noqa: S104
            url = f"http://{host}:{port}/"
            assert refused(url, "*", server.host) is Reason.FORBIDDEN_ADDRESS
            assert refused(server.url(redirects(url)), "*", server.host) is Reason.FORBIDDEN_ADDRESS
        with pytest.raises(TimeoutError):
            canary.accept()


def test_a_listening_port_would_be_heard() -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(5)
        port = canary.getsockname()[1]
        patience = FetchPolicy((f"127.0.0.1:{port}",), read_seconds=0.1, patience=Patience(1))
        with pytest.raises(ImageError):
            fetch(f"http://127.0.0.1:{port}/", patience, 10)
        canary.accept()[0].close()


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"])
def test_a_proxy_of_the_environment_is_not_asked(
    net: Net, server: FaultServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    net.allowed = server.port
    monkeypatch.setenv(name, f"http://{server.host}")
    net.names = {"images.example.com": [[PUBLIC]]}
    assert refused("http://images.example.com/a.png", "*") is Reason.UNREACHABLE
    assert set(net.connected) == {PUBLIC}


def test_nothing_is_fetched_unless_a_host_is_allowed(net: Net) -> None:
    net.names = {"images.example.com": [[PUBLIC]]}
    assert refused("https://images.example.com/a.png") is Reason.FORBIDDEN_ADDRESS
    assert refused("https://images.example.com/a.png", "example.com", "*.other.com", "x.images.example.com") is (
        Reason.FORBIDDEN_ADDRESS
    )
    assert (net.connected, net.asked) == ([], [])


@pytest.mark.parametrize(
    ("hosts", "url", "allowed"),
    [
        (["*"], "http://images.example.com/", True),
        (["*"], f"http://{PUBLIC}/", True),
        (["*"], f"https://[{PUBLIC_6}]/", True),
        (["*"], "http://images.example.com:8080/", False),
        (["images.example.com"], "https://images.example.com/", True),
        (["images.example.com"], "https://images.example.com./", True),
        (["images.example.com"], "https://IMAGES.example.com/", True),
        (["images.example.com"], "http://example.com/", False),
        (["images.example.com"], "http://images.example.com.evil.com/", False),
        (["images.example.com"], "http://evilimages.example.com/", False),
        (["*.example.com"], "http://a.b.example.com/", True),
        (["*.example.com"], "http://example.com/", False),
        (["*.example.com"], "http://evilexample.com/", False),
        (["images.example.com:8080"], "http://images.example.com:8080/", True),
        (["images.example.com:8080"], "http://images.example.com/", False),
        (["images.example.com:8080", "other.example.com"], "http://other.example.com:8080/", False),
        (["bücher.example"], "http://xn--bcher-kva.example/", True),
        (["10.0.0.5"], "http://10.0.0.5/", True),
        (["10.0.0.5"], "http://10.0.0.6/", False),
        (["10.0.0.5:8080"], "http://10.0.0.5:8080/", True),
        (["*", "10.0.0.5"], "http://internal.example.com/", False),
        (["internal.example.com:80"], "http://internal.example.com/", False),
        (["[::1]:8080"], "http://[::1]:8080/", True),
        (["[::1]:8080"], "http://[::1]/", False),
        (["localhost:8000"], "http://localhost:8000/", True),
        (["*", "localhost"], "http://localhost/", True),
        (["localhost:8000"], "http://127.0.0.1:8000/", False),
    ],
)
def test_a_host_is_allowed_as_it_is_written(net: Net, hosts: list[str], url: str, allowed: bool) -> None:
    net.names |= {"internal.example.com": [["10.0.0.5"]]}
    for name in ("images.example.com", "example.com", "a.b.example.com", "xn--bcher-kva.example", "other.example.com"):
        net.names[name] = [[PUBLIC]]
    assert refused(url, *hosts) is (Reason.UNREACHABLE if allowed else Reason.FORBIDDEN_ADDRESS)
    assert bool(net.connected) is allowed


@pytest.mark.parametrize(
    "address",
    [PUBLIC, PUBLIC_6, "192.0.0.9", "64:ff9b::808:808", "2002:808:808::1", "::ffff:8.8.8.8", "2001:4860::8888"],
)
def test_a_public_address_is_connected_to_however_it_is_written(net: Net, address: str) -> None:
    net.names = {"images.example.com": [[address, PUBLIC]]}
    assert refused("http://images.example.com/", "*") is Reason.UNREACHABLE
    assert net.connected[0] == address


def test_localhost_that_leads_elsewhere_is_refused(net: Net) -> None:
    net.names = {"localhost": [["10.0.0.1"]]}
    assert refused("http://localhost:8000/", "localhost:8000") is Reason.FORBIDDEN_ADDRESS
    assert net.connected == []


@pytest.mark.parametrize(
    "host",
    [
        "",
        "https://example.com",
        "example.com/",
        "user@example.com",
        "example.com:x",
        "*.*",
        "a*.com",
        "::1",
        "a b.com",
        "64:ff9b::1",
        "[64:ff9b::1]",
        "example.com:99999",
        "example.com?",
        "[::1",
    ],
)
def test_an_entry_that_is_no_host_is_named(host: str) -> None:
    with pytest.raises(BuildError, match=r"is a list of hosts such as images\.example\.com") as error:
        FetchPolicy((host,))
    assert repr(host) in str(error.value)


HOSTS = st.one_of(
    st.sampled_from([*FORBIDDEN_4, *DISGUISED, *(f"[{address}]" for address in FORBIDDEN_6)]),
    st.text(max_size=20),
    st.integers(0, 2**33).map(str),
    st.lists(st.integers(0, 300), min_size=1, max_size=5).map(lambda parts: ".".join(map(oct, parts))),
)


def test_whatever_a_url_is_made_of_it_is_refused_and_reaches_nothing() -> None:
    number, reasons, connected = sized(400, 4_000, 100_000), Counter[Reason](), list[object]()

    def loopback(name: str, port: int, *_: object) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
        name.encode("idna")
        return [Net._row("127.0.0.1", port)]

    @settings(max_examples=number, deadline=None)
    @given(
        scheme=st.sampled_from(["http", "https", "HTTP", "file", "gopher", "s3", ""]),
        user=st.sampled_from(["", "a@", "a:b@", "\\@", "#@", "?@"]),
        host=HOSTS,
        port=st.sampled_from(["", ":80", ":443", ":22", ":0", ":x", ":\uff18\uff10"]),
        path=st.text(max_size=10),
    )
    def try_one(scheme: str, user: str, host: str, port: str, path: str) -> None:
        reason = refused(f"{scheme}://{user}{host}{port}/{path}", "*")
        assert reason in {Reason.FORBIDDEN_ADDRESS, Reason.UNREACHABLE}
        assert connected == []
        reasons[reason] += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda _, address: connected.append(address))
        patch.setattr(socket, "getaddrinfo", loopback)
        try_one()
    told = {str(reason): count for reason, count in reasons.items()}
    noted(promise="R17", figure=f"{reasons.total():,} URLs made at random, refused: {told}; 0 connections")
