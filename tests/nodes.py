"""A Ray cluster on this machine, and encoders for its nodes that a test can hold, and see."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from indexer.encoder import Embeddings, Encoder, EncoderName, EncoderSpec, Pixels, load_encoder

ROOT = Path(__file__).parent.parent

_ENVIRONMENT = {
    # On a busy machine Ray's processes start slowly, and it gives up after 30 s.
    "RAY_agent_register_timeout_ms": "200000",
    "RAY_raylet_start_wait_time_s": "200",
    "RAY_AUTH_MODE": "disabled",  # or it writes a token into the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what it will be one day; without, Ray warns
    "PYTHONPATH": str(ROOT),  # so that nodes find what is below
}


@contextmanager
def started_cluster() -> Iterator[Any]:
    """Start a cluster whose head does no work, as a `ray.cluster_utils.Cluster`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _ENVIRONMENT.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster  # noqa: PLC0415 - an extra, which reads the environment

        cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            yield cluster
        finally:
            cluster.shutdown()


@dataclass(frozen=True)
class HeldEncoder:
    """Leaves the id of its process in `folder`, under that of its node, and encodes nothing while `held` lies there."""

    encoder: Encoder
    folder: Path

    def encode_images(self, pixels: list[Pixels]) -> Embeddings:
        import ray  # noqa: PLC0415 - an extra

        (self.folder / ray.get_runtime_context().get_node_id()).write_text(str(os.getpid()))
        while (self.folder / "held").exists():
            time.sleep(0.02)
        return self.encoder.encode_images(pixels)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)


def load_held(name: EncoderName, folder: Path, *, threads: int) -> Encoder:
    """Load an encoder that is to be held."""
    return cast("Encoder", HeldEncoder(load_encoder(name, device="cpu", threads=threads), folder))


@dataclass(frozen=True)
class MeanEncoder:
    """Encodes a picture as the mean of its colours, without torch; or ends its process where it should."""

    spec: EncoderSpec
    dies: bool

    def encode_images(self, pixels: list[Pixels]) -> Embeddings:
        if self.dies:
            os._exit(1)
        vectors = np.zeros((len(pixels), self.spec.dim), np.float32)
        for vector, each in zip(vectors, pixels, strict=True):
            vector[:3] = each.mean((1, 2))
        return vectors


def load_mean(spec: EncoderSpec, *, threads: int, dies: bool = False) -> Encoder:
    """Load an encoder that takes no time to load."""
    assert threads
    return cast("Encoder", MeanEncoder(spec, dies))
