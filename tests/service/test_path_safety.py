"""No file but an indexed picture, as it was indexed, leaves the service (R18); nothing forbidden is fetched (R17)."""

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from indexer.plan import image_id
from service.app import create_app
from service.settings import ServiceSettings
from tests.conftest import ADMIN_KEY
from tests.faults import FOREVER, FaultServer, redirects
from tests.indexer.sources.test_ssrf import DISGUISED, FORBIDDEN_4, FORBIDDEN_6, PATHS, URLS, Net
from tests.service.test_pipeline import listening, wait_for
from tests.trust.figures import noted, sized

RED = image_id("red/1.png")
SECRET = b"the secret of the machine"

# Paths


def payloads(secret: Path) -> list[str]:
    """Return ways to write a path that leads out of a folder, as a request has them."""
    ups = ["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "%252e%252e%252f", "..;/", "....//", "..%c0%af", "%2e./"]
    targets = [str(secret)[1:], "etc/passwd", "proc/self/environ", "red/1.png", "snapshots/CURRENT"]
    starts = ["", f"{RED}/", "./", "%2f", f"{RED}%00"]
    depths = range(1, 11, sized(8, 1, 1))
    climbing = [f"{start}{up * depth}{target}" for start, up, depth, target in product(starts, ups, depths, targets)]
    starts = ["", "file:", "file://", "%00", "~", "%2f%2f", "\\\\localhost\\"]
    written = [
        (path, quote(path), quote(path, safe=""), path.replace("/", "\\")) for path in (str(secret), "/etc/passwd")
    ]
    absolute = [start + path for start, paths in product(starts, written) for path in paths]
    return climbing + absolute


def asked(connection: socket.socket, path: str) -> tuple[int, bytes]:
    """Send a path as it is, and return the status and the body of the answer."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65_536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65_536)
    return int(head.split()[1]), body


def test_no_way_of_writing_a_path_leads_to_a_file(settings: ServiceSettings, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_bytes(SECRET)
    answers = Counter[int]()
    with listening(create_app(settings)) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        for payload, part in product(payloads(secret), ("image", "thumbnail")):
            status, body = asked(connection, f"/v1/items/{payload}/{part}")
            answers[status] += 1
            assert status in {404, 405}, (payload, body)
            assert SECRET not in body
            assert b"root:" not in body
        assert asked(connection, f"/v1/items/{RED}/image")[0] == 200
    assert answers.total() >= 500
    noted(promise="R18", figure=f"{answers.total():,} paths that lead out: {dict(answers)}")


@pytest.mark.parametrize("target", ["green/0.png", "red/2.png", "table.csv", "../secret.txt", "/etc/passwd"])
def test_another_file_in_the_place_of_an_indexed_one_is_not_served(
    client: TestClient, source: Path, tmp_path: Path, target: str
) -> None:
    (tmp_path / "secret.txt").write_bytes(SECRET)
    (source / "red" / "1.png").unlink()
    (source / "red" / "1.png").symlink_to(source / target)
    response = client.get(f"/v1/items/{RED}/image")
    assert (response.status_code, response.json()["code"]) == (410, "item_gone")


def test_a_link_that_is_swapped_all_the_time_never_shows_another_file(client: TestClient, source: Path) -> None:
    place, kept = source / "red" / "1.png", source / "kept.png"
    own = place.read_bytes()
    place.rename(kept)
    (source.parent / "secret.txt").write_bytes(SECRET)
    over, swaps, answers = threading.Event(), 0, Counter[tuple[int, bytes]]()

    def swap() -> None:
        nonlocal swaps
        while not over.is_set():
            for target in (kept, source / "green" / "0.png", source.parent / "secret.txt"):
                (source / "next").symlink_to(target)
                (source / "next").replace(place)
                swaps += 1

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(sized(600, 2_000, 60_000)):
            answer = client.get(f"/v1/items/{RED}/image")
            answers[answer.status_code, answer.content if answer.is_success else b""] += 1
    finally:
        over.set()
        swapper.join()
    assert set(answers) <= {(200, own), (410, b"")}
    figure = f"{answers.total():,} requests during {swaps:,} swaps of a link: "
    noted(promise="R18", figure=figure + f"{answers[200, own]:,} own files, 0 others")


# URLs


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    """Note every connection that is begun; only those to the allowed port are made."""
    return Net.put_in(monkeypatch)


@pytest.fixture
def fetching(settings: ServiceSettings, server: FaultServer) -> Iterator[TestClient]:
    """Talk to a service that may fetch from every public host, and from one server of this machine."""
    hosts = {"query_hosts": ("*", server.host)}
    with TestClient(create_app(settings.model_copy(update=hosts)), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer(b"public") as running:
        yield running


def codes(client: TestClient, url: str) -> set[str]:
    """Ask with a picture by URL, in every way that there is, and return what the answers are refused for."""
    part = {"image_url": url}
    search = [{"query": [part]}, {"query": [{"region": {**part, "box": [0, 0, 1, 1]}}]}]
    # Not by the client's own JSON: some of what is sent is no text.
    asked = [client.post("/v1/search", content=json.dumps(body), headers=JSON) for body in search]
    asked.append(client.post("/v1/classify", content=json.dumps(part), headers=JSON))
    assert {answer.status_code for answer in asked} <= {400, 422}, [answer.text for answer in asked]
    return {answer.json()["code"] for answer in asked}


JSON = {"Content-Type": "application/json"}


def test_no_forbidden_url_is_connected_to(fetching: TestClient, net: Net) -> None:
    addresses = [*FORBIDDEN_4, *DISGUISED, *(f"[{address}]" for address in FORBIDDEN_6)]
    urls = [*URLS, *(f"{scheme}://{address}/" for scheme, address in product(("http", "https"), addresses))]
    for url in urls:
        assert codes(fetching, url) <= {"forbidden_address", "invalid_request"}, url
    assert net.connected == []
    noted(promise="R17", figure=f"{len(set(urls))} forbidden URLs over HTTP, 0 connections")


def test_no_redirect_to_a_forbidden_url_is_followed(fetching: TestClient, net: Net, server: FaultServer) -> None:
    net.allowed, before = server.port, server.seen.total()
    urls = [url for url in URLS if url not in PATHS]
    for url in urls:
        location = url.replace("\n", "").encode().decode("latin-1")
        start = server.url(redirects(location), times=FOREVER)
        assert codes(fetching, start) <= {"forbidden_address", "unreachable"}, url
    assert set(net.connected) == {"127.0.0.1"}
    assert server.seen.total() - before == len(net.connected)
    noted(promise="R17", figure=f"{len(urls)} redirects to forbidden URLs over HTTP, 0 followed")


def test_a_listening_port_hears_nothing_of_the_service(fetching: TestClient, server: FaultServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0.1)
        port = canary.getsockname()[1]
        for host in ("127.0.0.1", "localhost", "0.0.0.0", "2130706433", "[::ffff:127.0.0.1]", "127.1"):  # noqa: S104
            url = f"http://{host}:{port}/"
            assert codes(fetching, url) == {"forbidden_address"}
            assert codes(fetching, server.url(redirects(url), times=FOREVER)) == {"forbidden_address"}
        with pytest.raises(TimeoutError):
            canary.accept()


def test_nothing_is_fetched_unless_a_host_is_named(client: TestClient, net: Net, server: FaultServer) -> None:
    net.allowed = server.port
    for url in ("https://images.example.com/a.png", f"http://{server.host}/a.png"):
        assert codes(client, url) == {"bad_query"}
    assert (net.connected, net.asked) == ([], [])


def test_a_reindex_takes_from_a_tables_rows_only_what_lies_in_registered_folders(
    settings: ServiceSettings, source: Path, tmp_path: Path
) -> None:
    registered, elsewhere = tmp_path / "registered", tmp_path / "elsewhere"
    for folder in (registered / "tables", registered / "more", elsewhere):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes((source / "red" / "0.png").read_bytes())
    (registered / "link").symlink_to(elsewhere)
    table = registered / "tables" / "list.txt"
    rows = ["a.png", registered / "more" / "a.png", elsewhere / "a.png", registered / "link" / "a.png"]
    rows += [f"{registered}/../elsewhere/a.png", "../../elsewhere/a.png", "s3://bucket/a.png"]
    table.write_text("".join(f"{row}\n" for row in rows))
    with TestClient(create_app(settings.model_copy(update={"roots": (str(registered),)}))) as client:
        client.headers["Authorization"] = f"Bearer {ADMIN_KEY}"
        started = client.post("/admin/v1/reindex", json={"sources": [str(table)], "labels": "parent"})
        assert started.status_code == 202, started.text
        wait_for(lambda: client.get(started.headers["location"]).json()["state"] != "running")
        job = client.get(started.headers["location"]).json()
        assert job["state"] == "succeeded", job
        wait_for(lambda: client.get("/v1/index").json()["count"] == 2)
        assert client.get("/v1/index").json()["skipped"] == {"outside_source": 5}
        items = client.get("/v1/items").json()["items"]
    assert [item["path"] for item in items] == ["a.png", str(registered / "more" / "a.png")]
