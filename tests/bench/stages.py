"""The stages of a build, each alone: what a picture costs in every one, and how fast the encoder could be fed.

`python -m tests.bench.stages costs FOLDER` and `... limit`; `tests.bench.indexing` calls both, in processes of their
own, as the threads of one backend disturb another's. `KINDRED_BACKEND` chooses the backend.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from indexer.ahead import BATCH_SIZE
from indexer.build_command import load_for_build
from indexer.encoder import Encoder, EncoderName, Pixels
from indexer.images import DecodePolicy, content_hash, decode, perceptual_hash, thumbnail
from indexer.preprocessing import shrink
from indexer.settings import Settings
from indexer.shards import EncodedPicture, PictureFacts, ShardFolder, write_shard

Model = Annotated[str, typer.Option()]
Weights = Annotated[str, typer.Option()]
Feeds = Annotated[str, typer.Option(help="Batch x callers, with commas.")]
Pictures = Annotated[int, typer.Option(help="For each of the feeds.")]

app = typer.Typer(add_completion=False, help=__doc__)


class Costs:
    """Processor seconds by stage, of all threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Count what is done inside."""
        start = time.process_time()
        yield
        self.seconds[stage] += time.process_time() - start


@app.command()
def costs(folder: Path, model: Model, pretrained: Weights) -> None:
    """Print the processor seconds that the pictures of a folder take in each stage, one picture after the other."""
    policy, encoder = DecodePolicy.of(Settings()), _load(EncoderName(model=model, pretrained=pretrained), threads=0)
    files, counted = sorted(folder.iterdir()), Costs()
    with TemporaryDirectory(dir=folder.parent) as home:
        store = ShardFolder(Path(home))
        _encode(files[:BATCH_SIZE], policy, encoder, store, Costs())  # warm, and libraries imported
        for start in range(0, len(files), BATCH_SIZE):
            _encode(files[start : start + BATCH_SIZE], policy, encoder, store, counted)
    print(json.dumps({stage: seconds / len(files) for stage, seconds in counted.seconds.items()}))


@app.command()
def limit(model: Model, pretrained: Weights, feeds: Feeds, pictures: Pictures = 96) -> None:
    """Print pictures per second of the encoder alone for each way to feed it."""
    cores, rates = os.cpu_count() or 1, dict[str, float]()
    ways: dict[int, list[int]] = defaultdict(list)
    for batch, callers in (map(int, each.split("x")) for each in feeds.split(",")):
        ways[callers].append(batch)
    for callers, batches in ways.items():
        encoder = _load(EncoderName(model=model, pretrained=pretrained), threads=max(cores // callers, 1))
        rates |= {f"{batch}x{callers}": _rate(encoder, batch, callers, pictures) for batch in batches}
    print(json.dumps(rates))


def _rate(encoder: Encoder, batch: int, callers: int, pictures: int) -> float:
    """Return pictures per second, of pictures that are ready."""
    ready = _ready(encoder, batch)
    calls = -(-pictures // (batch * callers)) * callers
    with ThreadPoolExecutor(callers) as pool:

        def encode(times: int) -> None:
            list(pool.map(encoder.encode_images, [ready] * times))

        encode(callers)  # warm
        start = time.perf_counter()
        encode(calls)
        return calls * batch / (time.perf_counter() - start)


def _load(name: EncoderName, threads: int) -> Encoder:
    return load_for_build(Settings(device="cpu"), name, threads=threads)


def _ready(encoder: Encoder, count: int) -> list[Pixels]:
    rng = np.random.default_rng(0)
    return [encoder.preprocess(rng.integers(0, 256, (256, 256, 3), np.uint8)) for _ in range(count)]


def _encode(files: Sequence[Path], policy: DecodePolicy, encoder: Encoder, store: ShardFolder, counted: Costs) -> None:
    prepared = [_prepare(path, policy, encoder, counted) for path in files]
    with counted.of("encode"):
        vectors = encoder.encode_images([pixels for _, pixels in prepared])
    rows = [row(vector) for (row, _), vector in zip(prepared, vectors, strict=True)]
    with counted.of("write the shard"):
        write_shard(store, "shard", rows)


def _prepare(
    path: Path, policy: DecodePolicy, encoder: Encoder, counted: Costs
) -> tuple[Callable[[NDArray[np.float32]], EncodedPicture], Pixels]:
    """Return how a row is made once its vector is known, and the pixels."""
    with counted.of("read and hash"):
        data = path.read_bytes()
        digest = content_hash(data)
    with counted.of("decode"):
        picture = decode(data, policy)
        rgb = picture.rgb  # decoded when first looked at
    with counted.of("thumbnail and perceptual hash"):
        small = shrink(rgb)
        bits, jpeg = perceptual_hash(small), thumbnail(small)
    with counted.of("preprocess"):
        pixels = encoder.preprocess(rgb)

    def row(vector: NDArray[np.float32]) -> EncodedPicture:
        facts = PictureFacts(digest, len(data), picture.media_type, picture.width, picture.height, bits, jpeg)
        return EncodedPicture(path.name, facts, vector, encoded=True)

    return row, pixels


if __name__ == "__main__":
    app()
