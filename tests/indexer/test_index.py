"""The index: FAISS finds what numpy finds, and says why where it cannot."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import faiss
import numpy as np
import pytest

from indexer.encoder import Embeddings
from indexer.errors import BuildError, CorruptSnapshot
from indexer.index import SearchParameters, VectorIndex
from indexer.index_building import build_index, check_factory, memory_needed, write_index
from tests.snapshots import unit_vectors

REFINING = "IVF4,PQ16x4fs,Refine(SQfp16)"
FACTORIES = ["Flat", "IVF8,Flat", "IVF4,SQ8", "HNSW16", "HNSW8,SQ8", "SQ8", "SQfp16", "PQ8x4", "PCAR16,SQ8", REFINING]


@pytest.fixture(scope="module")
def vectors() -> Embeddings:
    """Draw 600 directions of 16 dimensions."""
    return unit_vectors(600, 16)


@pytest.fixture(scope="module", params=FACTORIES)
def index(vectors: Embeddings, request: pytest.FixtureRequest) -> VectorIndex:
    """Build an index of each kind."""
    return build_index(vectors, request.param)


def nearest(vectors: Embeddings, vector: Embeddings, k: int) -> list[int]:
    """Find the nearest rows by sorting all of them."""
    return np.argsort(-(vectors.astype(np.float64) @ vector))[:k].tolist()  # type: ignore[no-any-return]


def found(index: VectorIndex, vector: Embeddings, k: int) -> list[int]:
    """Return the rows that an index finds nearest to one vector."""
    (rows,) = index.search(vector[None, :], k)
    return rows[rows >= 0].tolist()  # type: ignore[no-any-return]


def anonymous_bytes() -> int:
    """Return how much memory of this process is of no file."""
    facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(facts["RssAnon"].split()[0]) * 1024


def most_anonymous_bytes_in(work: Callable[[], object]) -> int:
    """Do something and return by how much the memory of this process that is of no file grew meanwhile, at most."""
    over, before = Event(), anonymous_bytes()

    def watch() -> int:
        most = before
        while not over.wait(0.001):
            most = max(most, anonymous_bytes())
        return most

    with ThreadPoolExecutor(1) as pool:
        most = pool.submit(watch)
        try:
            work()
        finally:
            over.set()
        return most.result() - before


def test_flat_finds_exactly_the_nearest_rows_in_order(vectors: Embeddings) -> None:
    index = build_index(vectors, "Flat")
    for query in unit_vectors(20, 16, seed=1):
        assert found(index, query, 25) == nearest(vectors, query, 25)


def test_many_searches_at_once_find_what_one_by_one_find(vectors: Embeddings) -> None:
    index = build_index(vectors, "Flat")
    queries = unit_vectors(50, 16, seed=1)
    assert index.search(queries, 25).tolist() == [nearest(vectors, query, 25) for query in queries]
    assert index.search(queries, 1_000)[:, 600:].tolist() == [[-1] * 400] * 50


@pytest.mark.parametrize("factory", ["IVF8,PQ8x4fs,Refine(SQfp16)", "RR16,IVF8,RaBitQfs,Refine(SQ8)", "IVF8,PQ8x4fs"])
@pytest.mark.parametrize("k", [3, 60])
def test_a_query_by_itself_finds_what_it_finds_among_others(vectors: Embeddings, factory: str, k: int) -> None:
    index = build_index(vectors, factory)
    queries, parameters = unit_vectors(40, 16, seed=1), SearchParameters(nprobe=3, k_factor=4)
    together = index.search(queries, k, parameters)
    alone = [index.search(query[None, :], k, parameters)[0] for query in queries]
    # Candidates of equal codes are cut off in another order.
    assert np.mean([len({*one} & {*other}) / k for one, other in zip(alone, together, strict=True)]) > 0.98


def test_every_kind_of_index_is_built_over_all_rows(index: VectorIndex) -> None:
    assert (len(index), index.dim) == (600, 16)


def test_every_kind_of_index_finds_a_row_among_its_ten_nearest(vectors: Embeddings, index: VectorIndex) -> None:
    hits = [row in found(index, vectors[row], 10) for row in range(0, 600, 10)]
    assert np.mean(hits) >= 0.95


@pytest.mark.parametrize("factory", ["HNSW16", "SQ8", "SQfp16", "IVF1,Flat"])
def test_an_index_that_probes_everything_has_nearly_full_recall(vectors: Embeddings, factory: str) -> None:
    index = build_index(vectors, factory)
    recalls = [
        len({*found(index, query, 10)} & {*nearest(vectors, query, 10)}) / 10 for query in unit_vectors(20, 16, seed=1)
    ]
    assert np.mean(recalls) >= 0.9


def test_an_index_that_probes_little_finds_fewer_rather_than_invented_rows(vectors: Embeddings) -> None:
    rows = found(build_index(vectors, "IVF8,Flat"), vectors[0], 600)
    assert 0 < len(rows) < 600
    assert len(set(rows)) == len(rows)


def test_asking_for_more_than_there_is_returns_everything(vectors: Embeddings) -> None:
    index = build_index(vectors[:5], "Flat")
    assert sorted(found(index, vectors[0], 100)) == [0, 1, 2, 3, 4]


def test_one_vector_is_enough_for_an_exact_index(vectors: Embeddings) -> None:
    assert found(build_index(vectors[:1], "Flat"), vectors[7], 3) == [0]


def test_rows_beyond_one_portion_keep_their_numbers() -> None:
    vectors = unit_vectors(140_000, 4)
    index = build_index(vectors, "Flat")
    assert len(index) == 140_000
    for query in unit_vectors(5, 4, seed=1):
        assert found(index, query, 1) == nearest(vectors, query, 1)


def test_more_vectors_than_are_needed_for_training_are_all_indexed() -> None:
    vectors = unit_vectors(262_145, 2)
    index = build_index(vectors, "IVF2,Flat")
    assert len(index) == 262_145


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
def test_memory_mapped_vectors_make_the_same_file(vectors: Embeddings, tmp_path: Path, factory: str) -> None:
    np.save(tmp_path / "vectors.npy", vectors)
    write_index(vectors, factory, tmp_path / "one", None)
    write_index(np.load(tmp_path / "vectors.npy", mmap_mode="r"), factory, tmp_path / "other", None)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("factory", FACTORIES)
def test_an_index_in_a_file_answers_as_in_memory(vectors: Embeddings, tmp_path: Path, factory: str) -> None:
    write_index(vectors, factory, tmp_path / "index", None)
    index, again = build_index(vectors, factory), VectorIndex.open(tmp_path / "index")
    assert (len(again), again.dim) == (600, 16)
    for query in unit_vectors(5, 16, seed=1):
        assert found(again, query, 20) == found(index, query, 20)


# Files


@pytest.mark.parametrize(("count", "dim"), [(1, 1), (3, 7), (600, 16), (70_000, 3)])
@pytest.mark.parametrize("factory", ["Flat", "SQfp16", "SQ8"])
def test_codes_written_block_by_block_are_the_file_that_faiss_writes(
    tmp_path: Path, factory: str, count: int, dim: int
) -> None:
    vectors = unit_vectors(count, dim)
    assert_written_as_faiss_writes_it(tmp_path, vectors, factory)


@pytest.mark.parametrize(("count", "dim"), [(600, 16), (4_097, 7), (9_000, 6)])
@pytest.mark.parametrize(
    "factory",
    [
        "IVF8,PQ{dim}x4fs,Refine(SQfp16)",
        "IVF8,PQ{dim}x4fs,Refine(SQ8)",
        "PQ{dim}x4fs,RFlat",
        "RR{dim},IVF4,RaBitQfs,Refine(Flat)",
        "SQ8,Refine(SQ4)",
        "IVF4,SQ8,Refine(RR{dim},SQfp16)",
        "HNSW4,Flat,RFlat",
    ],
)
def test_a_refining_index_written_block_by_block_is_the_file_that_faiss_writes(
    tmp_path: Path, factory: str, count: int, dim: int
) -> None:
    vectors = unit_vectors(count, dim)
    assert_written_as_faiss_writes_it(tmp_path, vectors, factory.format(dim=dim))


def assert_written_as_faiss_writes_it(folder: Path, vectors: Embeddings, factory: str) -> None:
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(np.ascontiguousarray(vectors[:: 1 if len(vectors) <= 65_536 else 2]))
    index.add(vectors)
    faiss.write_index(index, str(folder / "theirs"))
    write_index(vectors, factory, folder / "ours", None)
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()


def test_the_vectors_of_an_exact_index_are_never_in_memory_twice(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", unit_vectors(50_000, 256))
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")

    def write_and_search() -> None:
        write_index(mapped, "Flat", tmp_path / "index", 0)
        index = VectorIndex.open(tmp_path / "index")
        assert [found(index, mapped[row], 1) for row in (0, 49_999)] == [[0], [49_999]]

    # The vectors take 51 MB.
    assert most_anonymous_bytes_in(write_and_search) < 15_000_000


def test_the_vectors_that_an_index_refines_with_are_never_in_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", unit_vectors(400_000, 64))
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    # The vectors take 102 MB; what is trained on 15 MB, once for the lists and once for the codes; the codes 6 MB.
    grown = most_anonymous_bytes_in(lambda: write_index(mapped, "IVF16,PQ16x4fs,RFlat", tmp_path / "index", None))
    assert grown < 70_000_000
    index = VectorIndex.open(tmp_path / "index")
    assert [found(index, mapped[row], 1) for row in (0, 399_999)] == [[0], [399_999]]


def test_an_open_index_answers_after_its_file_is_deleted(vectors: Embeddings, tmp_path: Path) -> None:
    write_index(vectors, "Flat", tmp_path / "index", None)
    index = VectorIndex.open(tmp_path / "index")
    (tmp_path / "index").unlink()
    assert [found(index, vectors[row], 1) for row in range(0, 600, 50)] == [[row] for row in range(0, 600, 50)]


def test_an_index_is_opened_from_a_file_that_may_only_be_read(vectors: Embeddings, tmp_path: Path) -> None:
    write_index(vectors, "Flat", tmp_path / "index", None)
    (tmp_path / "index").chmod(0o444)
    assert found(VectorIndex.open(tmp_path / "index"), vectors[7], 1) == [7]


def test_searches_in_threads_answer_as_one_by_one(vectors: Embeddings) -> None:
    index = build_index(vectors, "HNSW16")
    queries = unit_vectors(200, 16, seed=1)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda query: found(index, query, 10), queries))
    assert answers == [found(index, query, 10) for query in queries]


# Refusals


@pytest.mark.parametrize(
    "factory", ["", "flat", "Garbage", "IVF4", "PQ3", "LSH", "IVF-1,Flat", "IVF99999999999,Flat", "é"]
)
def test_a_string_that_faiss_does_not_know_is_refused_in_a_sentence(factory: str) -> None:
    with pytest.raises(BuildError, match=r"^FAISS knows no index '.*' of 16 dimensions: \S"):
        check_factory(factory, 16)


def test_a_string_that_is_no_text_is_refused() -> None:
    with pytest.raises(BuildError, match="FAISS knows no index"):
        check_factory("\ud800", 16)


@pytest.mark.parametrize("factory", ["HNSW0", "HNSW1", "HNSW1,SQ8", "HNSW0_PQ4x4", "NSG0", "NSG1", "PQ4x0", "RQ00x4"])
def test_a_string_that_faiss_would_crash_on_is_refused(factory: str) -> None:
    with pytest.raises(BuildError, match=rf"^FAISS can make no index '{factory}': '.*' is too small\.$"):
        check_factory(factory, 16)


@pytest.mark.parametrize("factory", ["HNSW10", "HNSW2", "NSG16", "IVF100_HNSW10,Flat", "PCA10,Flat", "IVF10,PQ8x10"])
def test_a_string_with_a_zero_or_a_one_in_a_number_is_not_refused(factory: str) -> None:
    check_factory(factory, 16)


@pytest.mark.parametrize("factory", ["IVF64,Flat", "PQ8x8", "IVF4,PQ8x8"])
def test_too_few_vectors_to_train_on_are_refused_in_a_sentence(vectors: Embeddings, factory: str) -> None:
    with pytest.raises(BuildError, match=rf"^FAISS cannot build {factory} over 10 vectors: .*[Nn]umber of training"):
        build_index(vectors[:10], factory)


def test_an_index_that_takes_vectors_and_cannot_be_searched_is_refused(vectors: Embeddings) -> None:
    with pytest.raises(BuildError, match="FAISS cannot build IVF0,Flat"):
        build_index(vectors, "IVF0,Flat")


@pytest.mark.parametrize("data", [b"", b"garbage", b"IxFI", bytes(5_000), b"IwFl" + b"\xff" * 100])
def test_a_file_of_garbage_is_no_index(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "index").write_bytes(data)
    with pytest.raises(CorruptSnapshot, match="is no FAISS index: "):
        VectorIndex.open(tmp_path / "index")


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "HNSW16", "SQ8", REFINING])
def test_a_truncated_file_is_no_index(vectors: Embeddings, tmp_path: Path, factory: str) -> None:
    path = tmp_path / "index"
    write_index(vectors, factory, path, None)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptSnapshot, match="is no FAISS index: "):
        VectorIndex.open(path)


def test_a_missing_file_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(CorruptSnapshot, match="is no FAISS index: "):
        VectorIndex.open(tmp_path / "index")


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", REFINING])
def test_an_index_that_cannot_be_written_is_a_build_error(vectors: Embeddings, tmp_path: Path, factory: str) -> None:
    with pytest.raises(BuildError, match=r"^The index .*missing/index cannot be written: \S"):
        write_index(vectors, factory, tmp_path / "missing" / "index", None)


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", REFINING])
def test_a_full_disk_is_a_build_error(vectors: Embeddings, factory: str) -> None:
    with pytest.raises(BuildError, match=r"^The index /dev/full cannot be written: \S"):
        write_index(np.tile(vectors, (200, 1)), factory, Path("/dev/full"), None)


# Memory


@pytest.mark.parametrize("factory", ["IVF8,SQ8", "HNSW16", "IVF8,Flat", "HNSW8,SQ8", "PCA32,SQ8"])
def test_the_memory_asked_for_is_twice_to_three_times_the_file(tmp_path: Path, factory: str) -> None:
    vectors = unit_vectors(5_000, 64)
    write_index(vectors, factory, tmp_path / "index", None)
    size = (tmp_path / "index").stat().st_size
    # And three times the vectors that it is trained on, or that are added at a time.
    with pytest.raises(BuildError, match="memory"):
        write_index(vectors, factory, tmp_path / "index", int(1.9 * size) + 3 * vectors.nbytes)
    write_index(vectors, factory, tmp_path / "index", 3 * size + 3 * vectors.nbytes)


@pytest.mark.parametrize("refining", ["Refine(SQfp16)", "Refine(SQ8)", "RFlat"])
def test_the_memory_asked_for_does_not_count_what_an_index_refines_with(refining: str) -> None:
    base = "IVF4096,PQ256x4fs"
    assert memory_needed(10**6, 512, f"{base},{refining}") == memory_needed(10**6, 512, base)


def test_codes_that_need_no_training_are_written_with_no_memory_asked_for(vectors: Embeddings, tmp_path: Path) -> None:
    for factory in ("Flat", "SQfp16"):
        write_index(vectors, factory, tmp_path / "index", 0)


def test_an_index_that_would_take_too_much_memory_is_refused_and_others_that_fit_are_named(tmp_path: Path) -> None:
    vectors = np.broadcast_to(unit_vectors(1, 512), (10_000_000, 512))
    # 2,048 bytes, and 64 links of 4, of each of ten million: 23 GB, and twice as much while FAISS's arrays grow.
    with pytest.raises(BuildError) as raised:
        write_index(vectors, "HNSW32", tmp_path / "index", 8 * 10**9)
    assert str(raised.value) == (
        "Building HNSW32 over 10,000,000 vectors may take 47.3 GB of memory; the limit is 8 GB. Raise it, or choose an "
        "index that fits: Flat (next to nothing), IVF16384,PQ64 (3.09 GB)."
    )
    assert not (tmp_path / "index").exists()


def test_the_file_is_one_that_faiss_itself_reads(vectors: Embeddings, tmp_path: Path) -> None:
    write_index(vectors, "Flat", tmp_path / "index", None)
    index = faiss.read_index(str(tmp_path / "index"))
    assert (index.ntotal, index.d, index.metric_type) == (600, 16, faiss.METRIC_INNER_PRODUCT)
    assert (index.reconstruct_n(0, 600) == vectors).all()
