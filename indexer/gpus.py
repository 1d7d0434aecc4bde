"""Gpu: what searching needs of one GPU, by FAISS and CUDA. A door to FAISS."""

from functools import cached_property
from typing import Any, Protocol

import faiss

from indexer.errors import NoGpu


class Gpu(Protocol):
    """What is asked of one GPU."""

    @property
    def most(self) -> int:
        """The most neighbours, or lists, that one search may ask for."""
        ...

    def free(self) -> int:
        """Return how many bytes of its memory are free."""
        ...

    def flat(self, dim: int) -> Any:
        """Return an empty FAISS index of inner products that stores vectors in fp16."""
        ...

    def copy(self, index: Any) -> Any:
        """Return a copy of a FAISS index."""
        ...


class CudaGpu:
    """A GPU as CUDA numbers them."""

    def __init__(self, number: int) -> None:
        self._number = number
        # Only this implementation heeds selections. FAISS uses it where it is asked to.
        self._cuvs = "NVIDIA_CUVS" in faiss.get_compile_options()
        self.most = 16_384 if self._cuvs else 2_048

    def free(self) -> int:
        """Return how many bytes of its memory are free: CUDA's answer, for which FAISS's Python has no question."""
        from indexer.torch_runtime import torch  # noqa: PLC0415 - takes seconds, and only a GPU needs it here

        return int(torch.cuda.mem_get_info(self._number)[0])

    def flat(self, dim: int) -> Any:
        """Return an empty FAISS index of inner products that stores vectors in fp16."""
        config = faiss.GpuIndexFlatConfig()
        config.device, config.useFloat16, config.use_cuvs = self._number, True, self._cuvs
        return faiss.GpuIndexFlatIP(self._resources, dim, config)

    def copy(self, index: Any) -> Any:
        """Return a copy of a FAISS index."""
        options = faiss.GpuClonerOptions()
        # Of scalar quantisers, cuVS has 8 bits alone.
        quantizer = getattr(index, "sq", None)
        options.use_cuvs = self._cuvs and (quantizer is None or quantizer.qtype == faiss.ScalarQuantizer.QT_8bit)
        return faiss.index_cpu_to_gpu(self._resources, self._number, index, options)

    @cached_property
    def _resources(self) -> Any:
        return faiss.StandardGpuResources()


def find_gpus() -> list[Gpu]:
    """Return the GPUs that FAISS can use.

    Raises:
        NoGpu: there is none.
    """
    if not hasattr(faiss, "StandardGpuResources"):
        raise NoGpu("This FAISS is for CPUs only: install kindred[gpu] instead of kindred[cpu].")
    if not faiss.get_num_gpus():
        raise NoGpu("FAISS finds no GPU: it needs an NVIDIA one and a driver for the CUDA that it was built for.")
    return [CudaGpu(number) for number in range(faiss.get_num_gpus())]
