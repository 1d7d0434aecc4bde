"""What requests that come at the same time do to each other: they share batches, and nothing else."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from PIL.Image import Image as Picture

from indexer.encoder import Embeddings, Encoder, Patches, Pixels
from indexer.images import RGB
from indexer.plan import image_id
from service.app import create_app
from service.protocol import TimedProtocol
from service.settings import ServiceSettings
from tests.conftest import build_snapshot


class GatedEncoder:
    """Encodes as another does, once its gate is open, and notes what it was given."""

    def __init__(self, encoder: Encoder) -> None:
        self.spec, self.logit_scale, self.preprocess = encoder.spec, encoder.logit_scale, encoder.preprocess
        self.gate = threading.Event()
        self.texts: list[list[str]] = []
        self.pictures: list[int] = []
        self._encoder = encoder

    def encode_images(self, pixels: Sequence[Pixels]) -> Embeddings:
        self.pictures.append(len(pixels))
        assert self.gate.wait(60)
        return self._encoder.encode_images(pixels)

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        self.texts.append(list(texts))
        assert self.gate.wait(60)
        if "poison" in texts:
            raise RuntimeError("this text breaks the encoder")
        return self._encoder.encode_texts(texts)

    def patches(self, picture: Picture | RGB) -> Patches | None:
        return self._encoder.patches(picture)

    def segments(self, text: str) -> list[str]:
        return self._encoder.segments(text)

    def count_tokens(self, texts: Sequence[str]) -> int:
        return self._encoder.count_tokens(texts)


@contextmanager
def gated(settings: ServiceSettings, **changes: Any) -> Iterator[tuple[TestClient, GatedEncoder]]:
    """Serve with a gated encoder, which nothing but queries calls."""
    app = create_app(settings.model_copy(update={"backend": "torch", "refresh_seconds": 3_600.0, **changes}))
    with TestClient(app, raise_server_exceptions=False) as client:
        encoder = gate(app)
        try:
            yield client, encoder
        finally:
            encoder.gate.set()


def gate(app: FastAPI) -> GatedEncoder:
    searcher = app.state.live.searcher
    encoder = GatedEncoder(searcher.encoder)
    app.state.live.searcher = replace(searcher, encoder=encoder)
    return encoder


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def measured(client: TestClient | httpx2.Client, series: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))


def waiting(client: TestClient | httpx2.Client) -> float:
    return measured(client, 'kindred_queue_depth{stage="encode"}')


def search(client: TestClient, text: str) -> Any:
    return client.post("/v1/search", json={"query": [{"text": text}], "limit": 24})


def scores(response: Any) -> dict[str, float]:
    assert response.status_code == 200, response.text
    return {result["id"]: result["score"] for result in response.json()["results"]}


def test_queries_that_come_together_share_a_batch_and_are_answered_as_by_themselves(settings: ServiceSettings) -> None:
    texts = [f"picture number {number}" for number in range(12)]
    with gated(settings, text_cache=0) as (client, encoder), ThreadPoolExecutor(12) as clients:
        first = clients.submit(search, client, texts[0])
        wait_for(lambda: len(encoder.texts) == 1)
        others = [clients.submit(search, client, text) for text in texts[1:]]
        wait_for(lambda: waiting(client) == 11)
        encoder.gate.set()
        together = [scores(each.result()) for each in (first, *others)]
        assert [len(batch) for batch in encoder.texts] == [1, 11]
        assert measured(client, 'kindred_batch_size_sum{stage="encode"}') == 12
        assert measured(client, 'kindred_batch_size_count{stage="encode"}') == 2
        alone = [scores(search(client, text)) for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=2e-6)


def test_a_truncated_picture_among_good_ones_fails_alone(
    settings: ServiceSettings, source: Path, tmp_path: Path
) -> None:
    files = [path.read_bytes() for path in sorted(source.rglob("*.png"))[:20]]
    with Image.open(source / "red" / "0.png") as picture:
        picture.save(tmp_path / "red.jpg")
    files.insert(7, (tmp_path / "red.jpg").read_bytes()[:-200])
    with gated(settings) as (client, encoder), ThreadPoolExecutor(len(files)) as clients:

        def upload(file: bytes) -> Any:
            return client.post("/v1/search", files={"file": file}, data={"limit": "1"})

        answers = [clients.submit(upload, file) for file in files]
        wait_for(lambda: waiting(client) + sum(encoder.pictures) == 20)
        encoder.gate.set()
        statuses = [answer.result().status_code for answer in answers]
        best = [answer.result().json()["results"][0]["path"] for answer in answers if answer.result().is_success]
        assert statuses == [200] * 7 + [400] + [200] * 13
        assert answers[7].result().json()["code"] == "unreadable"
        assert best == [path.relative_to(source).as_posix() for path in sorted(source.rglob("*.png"))[:20]]
        assert len(encoder.pictures) < 20


def test_a_text_that_breaks_the_encoder_fails_alone(settings: ServiceSettings) -> None:
    with gated(settings) as (client, encoder), ThreadPoolExecutor(4) as clients:
        answers = [clients.submit(search, client, "first")]
        wait_for(lambda: len(encoder.texts) == 1)
        answers += [clients.submit(search, client, text) for text in ("a cat", "poison", "a dog")]
        wait_for(lambda: waiting(client) == 3)
        encoder.gate.set()
        assert [answer.result().status_code for answer in answers] == [200, 200, 500, 200]
        assert [len(batch) for batch in encoder.texts] == [1, 3, 1, 1, 1]


def test_a_query_too_many_is_refused_and_told_to_come_again(settings: ServiceSettings) -> None:
    with gated(settings, queue=2) as (client, encoder), ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(search, client, "first")]
        wait_for(lambda: len(encoder.texts) == 1)
        answers += [clients.submit(search, client, text) for text in ("second", "third")]
        wait_for(lambda: waiting(client) == 2)
        refused = search(client, "fourth")
        encoder.gate.set()
        assert [answer.result().status_code for answer in answers] == [200, 200, 200]
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert refused.headers["content-type"] == "application/problem+json"
    assert int(refused.headers["retry-after"]) >= 1


def test_a_request_of_many_texts_takes_its_turn_batch_by_batch(settings: ServiceSettings) -> None:
    with gated(settings, queue=4, max_batch=4) as (client, encoder):
        encoder.gate.set()
        answer = client.post("/v1/embeddings", json={"input": [f"text {number}" for number in range(50)]})
        assert (answer.status_code, len(answer.json()["data"])) == (200, 50)
        assert max(len(batch) for batch in encoder.texts) <= 4


def test_a_query_that_is_not_answered_in_time_is_given_up_and_what_waits_is_never_begun(
    settings: ServiceSettings,
) -> None:
    with gated(settings, deadline_seconds=1.5) as (client, encoder), ThreadPoolExecutor(1) as clients:
        first = clients.submit(search, client, "first")
        wait_for(lambda: len(encoder.texts) == 1)
        answers = [search(client, "second"), first.result()]
        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(504, "deadline_passed")] * 2
        assert answers[0].headers["content-type"] == "application/problem+json"
        assert "1.5 s" in answers[0].json()["detail"]
        encoder.gate.set()
        assert search(client, "third").status_code == 200
        assert encoder.texts == [["first"], ["third"]]


@contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    """Serve on a free port, in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, loop="uvloop", http=TimedProtocol, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def posted(port: int, body: bytes, length: int | None = None) -> socket.socket:
    """Send a search, and leave its answer to the caller."""
    connection = socket.create_connection(("127.0.0.1", port))
    head = ["POST /v1/search HTTP/1.1", "Host: x", "Content-Type: application/json"]
    head += [f"Content-Length: {length or len(body)}", "\r\n"]
    connection.sendall("\r\n".join(head).encode() + body)
    return connection


def test_the_work_of_a_client_that_has_left_is_dropped(
    settings: ServiceSettings, capfd: pytest.CaptureFixture[str]
) -> None:
    app = create_app(settings.model_copy(update={"backend": "torch", "refresh_seconds": 3_600.0}))
    with listening(app) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as watcher:
        encoder = gate(app)
        first = posted(port, b'{"query":[{"text":"first"}]}')
        wait_for(lambda: len(encoder.texts) == 1)
        second = posted(port, b'{"query":[{"text":"second"}]}')
        wait_for(lambda: waiting(watcher) == 1)
        second.close()
        gone = 'kindred_http_requests_total{method="POST",route="/v1/search",status="499"}'
        wait_for(lambda: measured(watcher, gone) == 1)
        posted(port, b'{"query":', length=1_000).close()
        wait_for(lambda: measured(watcher, gone) == 2)
        encoder.gate.set()
        assert first.recv(12) == b"HTTP/1.1 200"
        first.close()
        assert watcher.post("/v1/search", json={"query": [{"text": "third"}]}).status_code == 200
        assert encoder.texts == [["first"], ["third"]]
    output = capfd.readouterr()
    assert "Traceback" not in output.out + output.err


def test_a_text_asked_for_again_is_not_encoded_again_whatever_asks_and_whatever_is_swapped(
    settings: ServiceSettings, source: Path, snapshots: Path, encoder: Encoder
) -> None:
    with gated(settings) as (client, gated_encoder):
        gated_encoder.gate.set()
        first = scores(search(client, "a cat"))
        assert scores(search(client, "a cat")) == first
        build_snapshot(source, snapshots, encoder, labels=str(source / "table.csv"))
        client.app.state.live.refresh()  # type: ignore[attr-defined]
        assert scores(search(client, "a cat")) == first
        assert client.post("/v1/embeddings", json={"input": ["a cat", "a dog", "a cat"]}).status_code == 200
        prompts = {"id": image_id("red/0.png"), "labels": {"cat": ["a cat"], "dog": ["a dog"]}}
        assert client.post("/v1/classify/zero-shot", json=prompts).status_code == 200
        assert gated_encoder.texts == [["a cat"], ["a dog"]]
        assert measured(client, 'kindred_text_cache_total{outcome="miss"}') == 2


def test_no_more_texts_are_kept_than_the_setting_says(settings: ServiceSettings) -> None:
    for size, encoded in ((0, ["a", "b", "a", "b"]), (1, ["a", "b", "a", "b"]), (2, ["a", "b"])):
        with gated(settings, text_cache=size) as (client, encoder):
            encoder.gate.set()
            for text in ("a", "b", "a", "b"):
                assert search(client, text).status_code == 200
            assert list(chain.from_iterable(encoder.texts)) == encoded
