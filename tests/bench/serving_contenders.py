"""Who is measured: kindred's service, clip-retrieval's back end, and a bare loop."""

import base64
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import faiss

from indexer.encoder import DEMO_FOLDER, Embeddings, Encoder, accelerated, load_encoder
from indexer.images import DecodePolicy, decode
from indexer.snapshot import INDEX
from service.settings import ServiceSettings
from tests.bench.closed_loop import ADDRESS, ask
from tests.bench.serving_material import Bench, Kind, Template

LIMIT = 10
"""Results asked for."""

_ROOT = Path(__file__).parents[2]
_START_SECONDS = 600


class Contender(Protocol):
    """Someone who answers over HTTP."""

    def command(self, bench: Bench, port: int) -> tuple[list[str], dict[str, str]]:
        """Return what starts the server, and its environment."""
        ...

    @property
    def ready(self) -> str:
        """The path that is answered once queries are."""
        ...

    def templates(self, bench: Bench, kind: Kind) -> list[Template]:
        """Return requests."""
        ...

    def rows(self, answer: bytes) -> set[int]:
        """Return the rows of the pictures found."""
        ...


@dataclass(frozen=True)
class Kindred:
    """This service.

    Attributes:
        title: in the report.
        environment: settings, as `KINDRED_...`.
        flags: of the command.
    """

    title: str
    environment: tuple[tuple[str, str], ...] = ()
    flags: tuple[str, ...] = ()

    ready = "/readyz"

    def __str__(self) -> str:
        return self.title

    def command(self, bench: Bench, port: int) -> tuple[list[str], dict[str, str]]:
        """Return what starts the server, and its environment."""
        command = [sys.executable, "-m", "service", "--snapshots", str(bench.snapshots), "--port", str(port)]
        return [*command, *self.flags], {"KINDRED_CACHE": str(bench.folder.parent / "onnx"), **dict(self.environment)}

    def templates(self, bench: Bench, kind: Kind) -> list[Template]:
        """Return requests, uploads as forms."""
        queries = bench.queries(kind)
        if kind != Kind.UPLOAD:
            tail = b'"}],"limit":%d}' % LIMIT
            return [
                each.inside(b'{"query":[{"text":"', tail).posted("/v1/search", "application/json") for each in queries
            ]
        head = b'--part\r\nContent-Disposition: form-data; name="limit"\r\n\r\n%d\r\n' % LIMIT
        head += b'--part\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
        content = "multipart/form-data; boundary=part"
        return [each.inside(head, b"\r\n--part--\r\n").posted("/v1/search", content) for each in queries]

    def rows(self, answer: bytes) -> set[int]:
        """Return the rows of the pictures found."""
        return {int(each["id"], 16) for each in json.loads(answer)["results"]}


@dataclass(frozen=True)
class ClipRetrieval:
    """clip-retrieval, in an environment of its own.

    It is spared what kindred does not do (multilingual CLIP, safety, aesthetics, duplicates, sending whole pictures),
    and given Arrow for its metadata, faster than its default of Parquet by pandas.

    Attributes:
        python: of that environment.
        threads: of OpenMP for each request; None for its default of one per core.
    """

    python: Path
    threads: int | None = None

    ready = "/indices-list"

    def __str__(self) -> str:
        return "clip-retrieval" if self.threads is None else f"clip-retrieval, OMP_NUM_THREADS={self.threads}"

    def command(self, bench: Bench, port: int) -> tuple[list[str], dict[str, str]]:
        """Return what starts the server, and its environment."""
        weights = bench.name.pretrained or str(DEMO_FOLDER / "open_clip_model.safetensors")
        arguments = {
            "indices_paths": str(bench.folder / "peer" / "indices.json"),
            "port": port,
            # After the first slash comes the checkpoint, whose own path begins with another.
            "clip_model": f"open_clip:{bench.name.model}/{weights}",
            "columns_to_return": ["path", "caption", "label"],
            "use_arrow": True,
            "use_jit": False,
            "enable_mclip_option": False,
            "provide_aesthetic_embeddings": False,
        }
        runner = str(Path(__file__).with_name("clip_retrieval_back.py"))
        config = [str(bench.config)] if bench.config else []
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        return [str(self.python), runner, json.dumps(arguments), *config], threads

    def templates(self, bench: Bench, kind: Kind) -> list[Template]:
        """Return requests, uploads in base64."""
        queries = bench.queries(kind)
        name = b"text" if kind != Kind.UPLOAD else b"image"
        if kind == Kind.UPLOAD:
            # The number's digits are base64 as they are.
            queries = [Template(base64.b64encode(each.head)) for each in queries]
        asked = {"modality": "image", "num_images": LIMIT, "indice_name": "bench", "deduplicate": False}
        tail = b'", ' + json.dumps(asked).encode()[1:]
        return [each.inside(b'{"%b": "' % name, tail).posted("/knn-service", "application/json") for each in queries]

    def rows(self, answer: bytes) -> set[int]:
        """Return the rows of the pictures found."""
        return {each["id"] for each in json.loads(answer)}


@contextmanager
def serving(contender: Contender, bench: Bench) -> Iterator[int]:
    """Run a server and give its port.

    Raises:
        RuntimeError: it ends, or does not answer within ten minutes.
    """
    with socket.socket() as free:
        free.bind((ADDRESS, 0))
        port: int = free.getsockname()[1]
    command, environment = contender.command(bench, port)
    log = bench.folder / f"{contender}.log"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("KINDRED_", "OMP_"))}
    with (
        log.open("wb") as out,
        subprocess.Popen(command, env=inherited | environment, cwd=_ROOT, stdout=out, stderr=out) as process,
    ):
        try:
            _wait(process, port, contender.ready, log)
            yield port
        finally:
            process.terminate()


def _wait(process: "subprocess.Popen[bytes]", port: int, path: str, log: Path) -> None:
    """Wait until a server is ready."""
    request = f"GET {path} HTTP/1.1\r\nHost: {ADDRESS}\r\n\r\n".encode()
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            ask(port, request)
        except (OSError, RuntimeError):
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"{process.args!r} does not answer; see {log}.")


@dataclass(frozen=True)
class BareLoop:
    """Encode, then search, in one process of one thread: no server, no records, no scores of our own.

    Attributes:
        backend: `onnx` or `torch`.
    """

    backend: str

    def __str__(self) -> str:
        return f"bare loop, {self.backend}"

    @contextmanager
    def running(self, bench: Bench) -> Iterator["Loop"]:
        """Run it in a process of its own."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_loop, args=(bench, self.backend, theirs), daemon=True)
        process.start()
        try:
            ours.recv()
            yield Loop(ours)
        finally:
            process.terminate()
            process.join()


@dataclass(frozen=True)
class Loop:
    """A bare loop that is ready."""

    pipe: Connection

    def measure(self, kind: Kind, number: int, seconds: float) -> list[float]:
        """Return the seconds that each of some queries took, counted from a number on."""
        self.pipe.send((kind, number, seconds))
        latencies: list[float] = self.pipe.recv()
        return latencies


def _loop(bench: Bench, backend: str, pipe: Connection) -> None:
    settings = ServiceSettings()
    policy = DecodePolicy.of(settings)
    encoder = load_encoder(bench.name, device="cpu", threads=settings.threads)
    if backend == "onnx":
        encoder = accelerated(encoder, bench.folder.parent / "onnx", threads=settings.threads)
    index = faiss.read_index(str(bench.snapshot / INDEX))
    queries = {kind: bench.queries(kind) for kind in Kind}
    pipe.send("ready")
    while True:
        kind, number, seconds = pipe.recv()
        latencies, templates, end = [], queries[kind], time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            query = templates[number % len(templates)].numbered(number)
            index.search(_encoded(query, kind, encoder, policy), LIMIT)
            latencies.append(time.perf_counter() - start)
            number += 1
        pipe.send(latencies)


def _encoded(query: bytes, kind: Kind, encoder: Encoder, policy: DecodePolicy) -> Embeddings:
    if kind == Kind.UPLOAD:
        return encoder.encode_images([encoder.preprocess(decode(query, policy).rgb)])
    return encoder.encode_texts([query.decode()])
