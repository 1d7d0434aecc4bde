"""`hf-hub:` models: the real hub client, against a hub on this machine that holds one small model."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from indexer.encoder import EncoderName, load_encoder
from indexer.store import SnapshotStore
from tests.models import new_model, save_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(SimpleHTTPRequestHandler):
    """Answers as the hub does to a download: the file, its hash and the commit that it belongs to."""

    def translate_path(self, path: str) -> str:
        return super().translate_path("/" + path.rsplit("/", 1)[1])

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_file():
            self.send_header("ETag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """Serve the files of a small model."""
    save_model(tmp_path / "files", new_model(4))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(tmp_path / "files")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_of_the_hub_is_downloaded_and_used(hub: str, source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "indexer", "build", str(source), "--snapshots", str(tmp_path / "s")]
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    name = "hf-hub:kindred/tiny"
    done = subprocess.run([*command, "--model", name], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spec = SnapshotStore(tmp_path / "s").manifest(SnapshotStore(tmp_path / "s").published()).encoder
    local = load_encoder(EncoderName(model=f"local-dir:{tmp_path / 'files'}"), device="cpu", threads=1).spec
    assert spec.name.model == name
    assert (spec.image, spec.text) == (local.image, local.text)
