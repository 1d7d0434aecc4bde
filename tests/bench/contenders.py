"""Who is measured: `python -m indexer build` and clip-retrieval's inference, each as a process of its own."""

import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyarrow import parquet

from indexer.store import SnapshotStore

MODEL = "ViT-B-32"
PEER = "clip-retrieval==2.45.0"

_ROOT = Path(__file__).parents[2]
_POLICY = "OMP_WAIT_POLICY"


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes:
        encoded: pictures per second, from the first that is asked for to the last embedding on disk; the loading of
            model and libraries is left out.
        published: pictures per second until a service may search them; None for clip-retrieval, whose inference ends
            with embeddings in a file.
        wall: seconds of the whole command.
        vectors: the embeddings, by file name; unit length.
    """

    encoded: float
    published: float | None
    wall: float
    vectors: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Kindred:
    """This indexer, with one backend."""

    backend: str

    def __str__(self) -> str:
        return f"kindred, {self.backend}"

    def run(self, pictures: Path, weights: Path, scratch: Path) -> Outcome:
        """Build a first snapshot of a folder.

        The clock begins with the build, when the model is loaded; listing, planning and starting the decoding
        processes count.
        """
        snapshots = _emptied(scratch)
        command = [sys.executable, "-m", "indexer", "build", str(pictures), "--snapshots", str(snapshots)]
        command += ["--model", MODEL, "--pretrained", str(weights), "--near-duplicates", "0", "--progress", "json"]
        begun, ends = time.monotonic(), []
        with subprocess.Popen(
            command, env={**os.environ, "KINDRED_BACKEND": self.backend}, cwd=_ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            lines = []
            for line in process.stdout or ():
                lines.append(json.loads(line))
                ends.append(time.monotonic())
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}.")
        # The indexer's own rate counts from the beginning of the build.
        start = ends[0] - lines[0]["done"] / lines[0]["rate"]
        encoded = max(end for end, line in zip(ends, lines, strict=True) if line.get("stage") == "encode")
        vectors = self._vectors(snapshots)
        return Outcome(
            encoded=len(vectors) / (encoded - start),
            published=len(vectors) / (ends[-1] - start),
            wall=time.monotonic() - begun,
            vectors=vectors,
        )

    def _vectors(self, snapshots: Path) -> dict[str, NDArray[np.float32]]:
        store = SnapshotStore(snapshots)
        snapshot = store.open(store.published())
        records = snapshot.catalog.rows(range(len(snapshot)))
        return {record.path: np.array(snapshot.embeddings[record.row]) for record in records}


@dataclass(frozen=True)
class ClipRetrieval:
    """clip-retrieval, in an environment of its own.

    Attributes:
        python: of that environment.
        batch: its `batch_size`; 256 unless told otherwise.
        workers: its `num_prepro_workers`; 4 unless told otherwise.
        passive: whether idle OpenMP threads sleep, as they do in kindred; its own are left to spin.
    """

    python: Path
    batch: int
    workers: int
    passive: bool

    def __str__(self) -> str:
        return f"clip-retrieval, {self.batch} x {self.workers}{', passive' * self.passive}"

    def run(self, pictures: Path, weights: Path, scratch: Path) -> Outcome:
        """Have a folder of pictures encoded."""
        out = _emptied(scratch)
        arguments = {
            "input_dataset": str(pictures),
            "output_folder": str(out),
            # After the first slash comes the checkpoint, whose own path begins with another.
            "clip_model": f"open_clip:{MODEL}/{weights}",
            "batch_size": self.batch,
            "num_prepro_workers": self.workers,
            "enable_text": False,
        }
        environment = {key: value for key, value in os.environ.items() if key != _POLICY}
        times = out / "times.json"
        program = [str(self.python), str(Path(__file__).with_name("clip_retrieval_run.py"))]
        begun = time.monotonic()
        subprocess.run(
            [*program, str(times), json.dumps(arguments)],
            env=environment | ({_POLICY: "PASSIVE"} if self.passive else {}),
            cwd=out,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        wall, taken = time.monotonic() - begun, json.loads(times.read_text())
        vectors = self._vectors(out)
        return Outcome(len(vectors) / (taken["end"] - taken["begin"]), None, wall, vectors)

    def _vectors(self, out: Path) -> dict[str, NDArray[np.float32]]:
        rows = np.load(out / "img_emb" / "img_emb_0.npy").astype(np.float32)
        names = parquet.read_table(out / "metadata" / "metadata_0.parquet")["image_path"].to_pylist()
        return {Path(name).name: row for name, row in zip(names, rows, strict=True)}


Contender = Kindred | ClipRetrieval


def peer_python(home: Path) -> Path:
    """Return the Python of an environment with clip-retrieval, made now unless it is there."""
    python = home / "bin" / "python"
    if not list(home.glob("lib/*/site-packages/clip_retrieval")):
        venv.create(home, with_pip=True)
        # Its `clip` imports pkg_resources, which setuptools 81 dropped.
        packages = ["--constraint", str(_ROOT / "constraints.txt"), PEER, "setuptools<81"]
        subprocess.run([str(python), "-m", "pip", "install", *packages], check=True)
    return python


def agreement(ours: Outcome, theirs: Outcome) -> float:
    """Return the least cosine similarity of two embeddings of one picture, less what all pictures have in common.

    With random weights all embeddings lie close together: without taking their mean out any two would agree.
    """
    names = sorted(ours.vectors)
    if names != sorted(theirs.vectors):
        raise RuntimeError("The two sides did not encode the same pictures.")
    left, right = (np.stack([side.vectors[name] for name in names]) for side in (ours, theirs))
    left, right = left - left.mean(axis=0), right - right.mean(axis=0)
    products = (left * right).sum(axis=1)
    return float((products / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)).min())


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
