"""What many tests stand on: a small real model, a small drawn collection, a snapshot of it, a client."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from indexer.build import BuildReport, Run, build
from indexer.encoder import Encoder, EncoderName, load_encoder
from indexer.encoding import LocalExecutor
from indexer.images import DecodePolicy
from indexer.progress import ProgressStyle, reporter
from indexer.snapshot import BuildOptions
from indexer.store import SnapshotStore
from indexer.workers import Limits
from service.app import create_app
from service.settings import ServiceSettings
from tests.models import new_model, save_model

ADMIN_KEY = "test-key-0123456789abcdef"
POLICY = DecodePolicy(max_bytes=64 * 2**20, max_pixels=50_000_000)
LIMITS = Limits(cpu_seconds=30, wall_seconds=120, memory_bytes=2 * 2**30)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("KINDRED_") and name != "KINDRED_REAL_DATA":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> EncoderName:
    """Name a small model with random weights."""
    return EncoderName(model=save_model(tmp_path_factory.mktemp("models") / "tiny", new_model(0)))


@pytest.fixture(scope="session")
def encoder(model: EncoderName) -> Encoder:
    """Load that model."""
    return load_encoder(model, device="cpu", threads=1)


def draw_collection(folder: Path) -> None:
    """Write 24 noisy pictures in the folders blue, green and red, and a table of captions beside them."""
    random = np.random.default_rng(0)
    rows = ["path,label,caption,size"]
    for label, colour in (("red", (220, 30, 30)), ("green", (30, 180, 40)), ("blue", (40, 60, 210))):
        (folder / label).mkdir(parents=True)
        for number in range(8):
            noise = random.integers(-30, 30, (40, 56, 3))
            pixels = np.clip(np.array(colour) + noise + number, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
            rows.append(f"{label}/{number}.png,{label},a {label} picture,{number}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")


def build_snapshot(
    source: Path, snapshots: Path, encoder: Encoder, labels: str | None = "parent", index: str = "auto"
) -> BuildReport:
    """Build and publish a snapshot, as the command line does."""
    options = BuildOptions(sources=(str(source.resolve()),), labels=labels, index=index)
    return build(options, SnapshotStore(snapshots), encoder, POLICY, local_run(encoder), reporter(ProgressStyle.PLAIN))


def local_run(encoder: Encoder, shard_size: int = 512) -> Run:
    """Run a build on this machine, as the command line does."""
    return Run(LocalExecutor(lambda _: [encoder], workers=2, limits=LIMITS), shard_size=shard_size)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Draw a collection."""
    draw_collection(tmp_path / "pictures")
    return tmp_path / "pictures"


@pytest.fixture
def snapshots(tmp_path: Path, source: Path, encoder: Encoder) -> Path:
    """Build a snapshot of that collection, labelled and captioned by its table."""
    build_snapshot(source, tmp_path / "snapshots", encoder, labels=str(source / "table.csv"))
    return tmp_path / "snapshots"


@pytest.fixture
def settings(snapshots: Path) -> ServiceSettings:
    """Settings of a service over that snapshot."""
    return ServiceSettings.model_validate(
        {"snapshots": snapshots, "admin_key": ADMIN_KEY, "refresh_seconds": 0.05, "max_body_bytes": 1_000_000}
    )


@pytest.fixture
def app(settings: ServiceSettings) -> FastAPI:
    """Put that service together."""
    return create_app(settings)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """Talk to that service, in process; a bug is an answer with status 500, as it is for users."""
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def admin(client: TestClient) -> TestClient:
    """Talk to that service with the admin key."""
    client.headers["Authorization"] = f"Bearer {ADMIN_KEY}"
    return client


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Find the real pictures that are not part of the project."""
    place = os.environ.get("KINDRED_REAL_DATA")
    if not place:
        pytest.skip("KINDRED_REAL_DATA is not set: no real pictures here")
    return Path(place)
