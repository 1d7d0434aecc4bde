"""OnnxEncoder: the towers of an open_clip model, exported once and run by ONNX Runtime. The door to both.

An exported tower is kept in a cache by the fingerprint of its half, and its embeddings are held against those of the
torch tower before it is used.
"""

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Self, TypeVar

import numpy as np
import onnx
import onnxruntime
import onnxscript
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from PIL.Image import Image

from indexer.encoder import Embeddings, Encoder, Patches, Pixels
from indexer.errors import EncoderError
from indexer.images import RGB
from indexer.open_clip_encoder import OpenClipEncoder
from indexer.torch_runtime import torch

T = TypeVar("T")

OnnxPrecision = Literal["fp32", "int8"]

# An exported tower in single precision is the same function but for the order of additions.
MIN_COSINE = 0.9999

# ViT-B-32 on two cores encodes 39 to 40 pictures per second in batches of 8 and 16, 37 in 32, 34 in 64 (measured).
_BATCH_SIZE = 16

_MODEL = "model.onnx"
_RECORD = "record.json"

# Whatever decides what an export contains: a change of any is another entry of the cache.
_VERSIONS = [1, torch.__version__, onnx.__version__, onnxscript.__version__, onnxruntime.__version__]

_PROBE_TEXTS = ("", "a", "a photo of a cat", "two red cars in the rain", "1,234 ünïcödé wörds, 図形!", "the end " * 99)

_LOG = logging.getLogger(__name__)

Tokens = NDArray[np.int64]
"""Shape (n, context length)."""


@dataclass(frozen=True)
class Drift:
    """Cosines of an exported tower's embeddings to those of the torch tower, on probe inputs: their mean and lowest."""

    mean: float
    worst: float


class OnnxEncoder:
    """An open_clip encoder whose towers ONNX Runtime runs; preprocessing, tokenizer and identity are the original's.

    Attributes:
        image_drift: how far its embeddings of pictures are from the original's.
        text_drift: the same for texts.
    """

    def __init__(self, original: OpenClipEncoder, image: "_Tower", text: "_Tower", precision: OnnxPrecision) -> None:
        self.spec = original.spec.model_copy(update={"precision": precision})
        self.logit_scale = original.logit_scale
        self.preprocess = original.preprocess
        self.image_drift, self.text_drift = image.drift, text.drift
        self._original = original
        self._image, self._text = image, text

    @classmethod
    def of(cls, encoder: Encoder, cache: Path, *, threads: int, precision: OnnxPrecision) -> Self:
        """Export an encoder, or load what was exported before, as `indexer.encoder.accelerated` says."""
        if not isinstance(encoder, OpenClipEncoder) or encoder.spec.precision != "fp32":
            raise EncoderError(f"Only a torch encoder in fp32 can be exported to ONNX; {encoder.spec.name} is not one.")
        providers = _providers(encoder.device)
        exports = _Exports(encoder, cache.expanduser())
        towers = [_Tower(*exports.tower(half, precision), providers, threads) for half in ("image", "text")]
        return cls(encoder, towers[0], towers[1], precision)

    def encode_images(self, pixels: Sequence[Pixels]) -> Embeddings:
        """Encode n preprocessed pictures into shape (n, dim)."""
        batches = [self._image.run(np.stack(batch)) for batch in _batches(pixels)]
        return np.concatenate(batches) if batches else np.empty((0, self.spec.dim), np.float32)

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Encode n texts into shape (n, dim)."""
        batches = [self._text.run(self._original.tokens(batch).numpy()) for batch in _batches(texts)]
        return np.concatenate(batches) if batches else np.empty((0, self.spec.dim), np.float32)

    def patches(self, picture: Image | RGB) -> Patches | None:
        """Return what each patch of an upright RGB picture shows; the original tower tells, the exported does not."""
        return self._original.patches(picture)

    def segments(self, text: str) -> list[str]:
        """Return a text in pieces that the text tower reads whole."""
        return self._original.segments(text)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Count the tokens that are not padding."""
        return self._original.count_tokens(texts)


class _Tower:
    """One exported tower, from pixels or tokens to unit rows."""

    def __init__(self, path: Path, drift: Drift, providers: list[Any], threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin between two operators keep a busy neighbour off its core, as OpenMP's do.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.drift = drift
        self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        self._lock = Lock()  # one call at a time, as in OpenClipEncoder: each takes all the threads it may

    def run(self, inputs: NDArray[np.uint8] | Tokens) -> Embeddings:
        with self._lock:
            (embeddings,) = self._session.run(None, {"inputs": inputs})
        found: Embeddings = embeddings
        return found


class _ImageTower(torch.nn.Module):
    """Pixels (n, 3, height, width) to unit rows, normalisation included, so that bytes are all that is passed."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, encoder: OpenClipEncoder) -> None:
        super().__init__()
        self.visual = encoder.model.visual
        self._encode = encoder.model.encode_image
        self.register_buffer("mean", torch.tensor(encoder.preprocess.mean).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(encoder.preprocess.std).view(3, 1, 1) * 255)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self._encode((inputs.float() - self.mean) / self.std), dim=-1)


class _TextTower(torch.nn.Module):
    """Tokens (n, context length) to unit rows."""

    def __init__(self, encoder: OpenClipEncoder) -> None:
        super().__init__()
        self.model = encoder.model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.model.encode_text(inputs), dim=-1)


class _Exports:
    """The cache: one folder for each half, precision and set of versions, complete or not there.

    Nothing is flushed to the disk for safety: a file that a power failure cut short fails its hash and is made again.
    """

    def __init__(self, encoder: OpenClipEncoder, cache: Path) -> None:
        self._encoder = encoder
        self._cache = cache

    def tower(self, half: Literal["image", "text"], precision: OnnxPrecision) -> tuple[Path, Drift]:
        """Return the file of a tower and its drift; export it where the cache has no sound one."""
        spec = self._encoder.spec
        facts = [spec.image if half == "image" else spec.text, half, precision, *_VERSIONS]
        folder = self._cache / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
        drift = _sound(folder)
        if drift is None:
            try:
                drift = self._make(folder, half, precision)
            except OSError as error:
                raise EncoderError(f"The exported model cannot be written into {self._cache}: {error}") from error
            _LOG.info("%s, %s tower as ONNX in %s: cosine to torch %s", spec.name, half, precision, drift)
        return folder / _MODEL, drift

    def _make(self, folder: Path, half: Literal["image", "text"], precision: OnnxPrecision) -> Drift:
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=self._cache) as temporary:
            work = Path(temporary, "new")
            work.mkdir()
            if precision == "int8":
                _quantise(self.tower(half, "fp32")[0], work / _MODEL)
            else:
                self._export(half, work / _MODEL)
            drift = self._drift(half, work / _MODEL)
            if precision == "fp32" and not drift.worst >= MIN_COSINE:
                raise EncoderError(
                    f"The {half} tower of {self._encoder.spec.name} as ONNX is not the same as in torch: the cosine of "
                    f"their embeddings is {drift.worst:.6f}, and must be at least {MIN_COSINE}. Use the torch backend."
                )
            files = {path.name: _digest(path) for path in work.iterdir()}
            (work / _RECORD).write_text(json.dumps({"files": files, "drift": asdict(drift)}))
            _publish(work, folder, Path(temporary))
        return drift

    def _export(self, half: Literal["image", "text"], path: Path) -> None:
        encoder = self._encoder
        tower = _ImageTower(encoder) if half == "image" else _TextTower(encoder)
        inputs = torch.from_numpy(self._probes(half)[:2]).to(encoder.device)
        try:
            with _silence():
                torch.onnx.export(
                    tower.to(encoder.device).eval(),
                    (inputs,),
                    path,
                    input_names=["inputs"],
                    output_names=["embeddings"],
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    dynamo=True,
                    verbose=False,
                )
        except Exception as error:
            # The exporter raises whatever one of its many steps trips over; each means that the model is not for it.
            raise EncoderError(f"The model {encoder.spec.name} cannot be exported to ONNX: {error}") from error

    def _drift(self, half: Literal["image", "text"], path: Path) -> Drift:
        """Compare the embeddings of probe inputs; a batch of another size than the one that was exported with."""
        probes = self._probes(half)
        encoder = self._encoder
        wanted = encoder.encode_images(list(probes)) if half == "image" else encoder.encode_texts(_PROBE_TEXTS)
        found = _Tower(path, Drift(1, 1), _providers(encoder.device), 0).run(probes)
        cosines = np.sum(found.astype(np.float64) * wanted, axis=1)
        return Drift(float(cosines.mean()), float(cosines.min()))

    def _probes(self, half: Literal["image", "text"]) -> NDArray[Any]:
        if half == "text":
            return self._encoder.tokens(_PROBE_TEXTS).numpy()
        rng = np.random.default_rng(0)
        height, width = self._encoder.preprocess.size
        # Noise of every grain, from one colour to one of each pixel: a tower sees both much and little detail.
        grains = [-(-max(height, width) // 4**power) for power in range(5)]
        return np.stack([_noise(rng, height, width, grain) for grain in (*grains, max(height, width))])


def _noise(rng: np.random.Generator, height: int, width: int, grain: int) -> Pixels:
    coarse = rng.integers(0, 256, (3, -(-height // grain), -(-width // grain)), np.uint8)
    return np.kron(coarse, np.ones((1, grain, grain), np.uint8))[:, :height, :width]


def _batches(inputs: Sequence[T]) -> Iterator[Sequence[T]]:
    return (inputs[start : start + _BATCH_SIZE] for start in range(0, len(inputs), _BATCH_SIZE))


def _providers(device: torch.device) -> list[Any]:
    """Return where ONNX Runtime runs a model that torch has on `device`."""
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise EncoderError("This ONNX Runtime knows no CUDA; install onnxruntime-gpu instead of onnxruntime.")
    return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]


def _quantise(source: Path, target: Path) -> None:
    """Write a tower whose matrix products are in 8 bit, one scale for each channel of the weights."""
    with _silence():
        quantize_dynamic(source, target, ["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what the exporter and the quantiser warn and log of their own insides from users, who can change none."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sound(folder: Path) -> Drift | None:
    """Return the drift of an entry whose files are all as they were written, else None."""
    try:
        record = json.loads((folder / _RECORD).read_text())
        whole = all(_digest(folder / name) == digest for name, digest in record["files"].items())
        return Drift(**record["drift"]) if whole and _MODEL in record["files"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _publish(work: Path, folder: Path, aside: Path) -> None:
    """Give an entry its name. Where another process was faster, its entry is as good, unless it is a damaged one."""
    try:
        work.rename(folder)
    except OSError:
        if _sound(folder) is None:
            folder.rename(aside / "damaged")
            work.rename(folder)
