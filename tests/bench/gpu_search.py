"""How near to the card's memory bandwidth its search is: `python -m tests.bench.gpu_search FOLDER`.

Random unit vectors, drawn on the card and kept on the host as a snapshot keeps them, are searched by `GpuIndex`, the
exact rescoring on the host included. A search reads every vector once, in fp16, so that it takes at least their bytes
over the rate at which the card copies memory, which is measured in the same run (reading and writing counted). Takes
4 kB of disk and 2 kB of memory a vector.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from indexer.encoder import Embeddings
from indexer.errors import NoGpu
from indexer.gpu_index import on_gpu
from indexer.gpus import find_gpus
from indexer.index import Index, VectorIndex
from indexer.index_building import write_index
from indexer.torch_runtime import open_clip, torch

K = 10
BATCHES = (1, 2, 4, 8, 16, 32, 64, 1024)

_TIMES, _WARM = 20, 3
_BLOCK = 1_000_000
_COPIED = 2**30
_MODEL, _ENCODED = "ViT-B-32", 64  # of 512 dimensions


def seconds(work: Callable[[], object]) -> float:
    """Return the median time of some work, once it is warm."""
    taken = []
    for _ in range(_WARM + _TIMES):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[_WARM:]))


def copy_rate() -> float:
    """Return how many bytes the card reads and writes in a second while it copies."""
    source = torch.zeros(_COPIED, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return 2 * source.nbytes / seconds(copy)


def draw(path: Path, count: int, dim: int) -> Embeddings:
    """Write random unit vectors, drawn on the card, into a file, and return them memory-mapped."""
    torch.manual_seed(0)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, dim))
    for start in range(0, count, _BLOCK):
        rows = torch.randn(min(_BLOCK, count - start), dim, device="cuda")
        out[start : start + len(rows)] = torch.nn.functional.normalize(rows).cpu().numpy()
    out.flush()
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def search_table(index: Index, rate: float) -> list[str]:
    """Return a Markdown table of times against the floor that a rate of memory, in bytes per second, sets."""
    floor = 2 * len(index) * index.dim / rate
    queries = np.random.default_rng(1).standard_normal((max(BATCHES), index.dim), np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    lines = ["| batch | ms | floor ms | floor / time | queries per second |", "|---|---|---|---|---|"]
    for batch in BATCHES:
        taken = seconds(lambda size=batch: index.search(queries[:size], K))  # type: ignore[misc]
        lines.append(
            f"| {batch} | {1e3 * taken:.2f} | {1e3 * floor:.2f} | {floor / taken:.0%} | {batch / taken:,.0f} |"
        )
    return lines


def agreement(index: Index, embeddings: Embeddings) -> float:
    """Return the share of the exact neighbours, by products in double precision on the card, that the index finds."""
    queries = embeddings[: _BLOCK : _BLOCK // 16][:16] if len(embeddings) >= _BLOCK else embeddings[:16]
    wanted = torch.from_numpy(queries.astype(np.float64)).cuda()
    scores, rows = [], []
    for start in range(0, len(embeddings), _BLOCK):
        block = torch.from_numpy(np.array(embeddings[start : start + _BLOCK])).cuda().double()
        best = torch.topk(wanted @ block.T, K)
        scores.append(best.values)
        rows.append(best.indices + start)
    exact = torch.cat(rows, 1).gather(1, torch.topk(torch.cat(scores, 1), K).indices).cpu().numpy()
    found = index.search(queries, K)
    return sum(len(np.intersect1d(*pair)) for pair in zip(found, exact, strict=True)) / exact.size


def end_to_end(index: Index) -> str:
    """Return a sentence on pictures that are encoded, by random weights, and searched with."""
    model = open_clip.create_model(_MODEL).to("cuda").eval()
    pixels = torch.randn(_ENCODED, 3, 224, 224, device="cuda")

    def encode() -> Embeddings:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16):
            return torch.nn.functional.normalize(model.encode_image(pixels).float()).cpu().numpy()

    alone, both = seconds(encode), seconds(lambda: index.search(encode(), K))
    return (
        f"{_ENCODED} pictures by {_MODEL}: encoded in {1e3 * alone:.1f} ms, encoded and searched with in "
        f"{1e3 * both:.1f} ms: {_ENCODED / both:,.0f} a second."
    )


def main(
    folder: Annotated[Path, typer.Argument(help="Where vectors and index go; they are kept.")],
    count: Annotated[int, typer.Option(min=1_000)] = 10_000_000,
    dim: Annotated[int, typer.Option()] = 512,
) -> None:
    """Print the table, or say that there is no GPU."""
    try:
        find_gpus()
    except NoGpu as error:
        print(f"Nothing was measured: {error}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    embeddings = draw(folder / "embeddings.npy", count, dim)
    write_index(embeddings, "Flat", folder / "index.faiss", None)
    start = time.perf_counter()
    index = on_gpu(embeddings, VectorIndex.open(folder / "index.faiss"), "cuda")
    placed = time.perf_counter() - start
    rate = copy_rate()
    print(
        f"{torch.cuda.get_device_name()}: {count:,} x {dim} on it in {placed:.0f} s; it copies {rate / 1e12:.2f} TB/s."
    )
    print(
        f"Selections are heeded: {index.selects}. Of the exact neighbours, {agreement(index, embeddings):.2%} found.\n"
    )
    print("\n".join(search_table(index, rate)))
    if dim == 512:
        print(f"\n{end_to_end(index)}")


if __name__ == "__main__":
    typer.run(main)
