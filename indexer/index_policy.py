"""What the index `auto` stands for: by how many vectors there are, the memory to build in, and where searches run."""

from indexer.index_building import check_factory, lists_for, memory_needed

AUTO = "auto"

# Comparing with so many vectors takes less than 10 ms, and needs no tuning; codes of vectors this short, which are
# compared in no time, would not tell neighbours apart.
_EXACT, _SHORT = 50_000, 16
_FP16_BYTES = 2


def check_index(index: str, dim: int) -> None:
    """Refuse what is neither `auto` nor a FAISS factory string for `dim` dimensions.

    Raises:
        BuildError: it can make no index.
    """
    if index != AUTO:
        check_factory(index, dim)


def resolve_factory(index: str, count: int, dim: int, memory_limit: int | None = None, gpu_memory: int = 0) -> str:
    """Return the FAISS factory string that `index` stands for: itself, or the choice of `auto`.

    Args:
        index: a factory string that `check_index` lets pass, or `auto`.
        count: how many vectors there are.
        dim: of each.
        memory_limit: bytes that building may take; None for any.
        gpu_memory: bytes of the GPUs that searches run on; 0 where they run on a CPU.
    """
    return choose_factory(count, dim, memory_limit, gpu_memory) if index == AUTO else index


def choose_factory(count: int, dim: int, memory_limit: int | None, gpu_memory: int) -> str:
    """Return the factory string of the quickest index that can be built, and that can search among selected rows.

    Flat where exact search is quick enough, and where nothing else can be built; otherwise an inverted file.
    """
    if count <= _EXACT or dim < _SHORT:
        return "Flat"
    # The nearest lists are found by comparing with all of them: a graph over them costs recall (measured).
    lists = f"IVF{lists_for(count)}"
    factories = [f"{lists},PQ{_parts(dim)}x4fs,Refine(SQfp16)"]
    # GPUs compare with all vectors while they hold them in half precision; of what is smaller, they take this.
    if 0 < gpu_memory < count * dim * _FP16_BYTES:
        factories.insert(0, f"{lists},SQ8")
    fitting = (each for each in factories if memory_limit is None or memory_needed(count, dim, each) <= memory_limit)
    return next(fitting, "Flat")


def _parts(dim: int) -> int:
    """Return into how many parts a vector is cut, of two numbers each, or of one where their count is odd."""
    return dim if dim % 2 else dim // 2
