"""The encoder seam: what a dual encoder is, what names and identifies one, and how to load it."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from pydantic import BaseModel, ConfigDict

from indexer.errors import EncoderError
from indexer.images import RGB
from indexer.settings import Settings

Embeddings = NDArray[np.float32]
"""Shape (n, dim), rows of length 1: the inner product of two rows is their cosine similarity."""

Pixels = NDArray[np.uint8]
"""Shape (3, height, width): one picture, resized and cut as the image tower wants it, and not yet normalised."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as shares of a picture's width and height."""

Precision = Literal["fp32", "bf16", "fp16", "int8"]
"""What an encoder computes in. Its embeddings are float32 whatever it is."""

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent / "models" / "demo"
DEMO_NOTICE = (
    "The bundled demo model knows only drawn things, in the drawing style of the demo collection. "
    "Set KINDRED_MODEL to a real CLIP, for example hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K, and reindex."
)


class EncoderName(BaseModel):
    """What a user says to name an encoder: see `Settings.model` and `Settings.pretrained`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str
    pretrained: str | None = None

    @classmethod
    def of(cls, settings: Settings, model: str | None = None, pretrained: str | None = None) -> Self:
        """Return the encoder that a command's flags name; without any, the one that new snapshots are built with."""
        if model or pretrained:
            return cls(model=model or settings.model, pretrained=pretrained)
        return cls(model=settings.model, pretrained=settings.pretrained)

    @property
    def notice(self) -> str | None:
        """What users of this encoder should know, if anything."""
        return DEMO_NOTICE if self.model == DEMO else None

    def __str__(self) -> str:
        return self.model if self.pretrained is None else f"{self.model} ({self.pretrained})"


class EncoderSpec(BaseModel):
    """The identity of a loaded encoder, as a manifest keeps it.

    Attributes:
        name: how to load it again.
        dim: length of an embedding.
        image: SHA-256 of the image half (architecture, image tower and projector weights, preprocessing, dimension,
            normalisation). It keys the embeddings.
        text: SHA-256 of the text half (text tower, tokenizer, context length). It may change without encoding a
            picture again.
        precision: what the pictures are encoded in. Embeddings of one image half can be compared whatever theirs, but
            are equal only where it is the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: EncoderName
    dim: int
    image: str
    text: str
    precision: Precision = "fp32"


@dataclass(frozen=True, eq=False)
class Patches:
    """What an image tower sees of a picture, patch by patch, in the space of the embeddings.

    Attributes:
        vectors: unit vectors, shape (rows, columns, dim), from top left.
        box: what the patches cover; beyond 0 and 1 where the tower looks past the picture's edges.
    """

    vectors: NDArray[np.float32]
    box: Box


class Encoder(Protocol):
    """Encodes pictures and texts into one space. Safe to call from several threads."""

    @property
    def spec(self) -> EncoderSpec:
        """Its identity."""
        ...

    @property
    def logit_scale(self) -> float:
        """Factor on cosine similarities before a softmax over texts, learned in training."""
        ...

    @property
    def preprocess(self) -> Callable[[Image | RGB], Pixels]:
        """What turns an upright RGB picture of any size into what `encode_images` takes; decoding processes take it."""
        ...

    def encode_images(self, pixels: Sequence[Pixels]) -> Embeddings:
        """Encode n preprocessed pictures into shape (n, dim)."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Encode n texts into shape (n, dim); what is beyond the context length is not read."""
        ...

    def patches(self, picture: Image | RGB) -> Patches | None:
        """Return what each patch of an upright RGB picture shows; None where the image tower tells of no patches."""
        ...

    def segments(self, text: str) -> list[str]:
        """Return a text in pieces that the text tower reads whole; one that it does is one piece, as it is."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Count the tokens that the text tower reads of these texts, its start and end marks included."""
        ...


def load_encoder(name: EncoderName, *, device: str, threads: int, precision: Precision | None = None) -> Encoder:
    """Load an encoder that runs on torch.

    Args:
        name: see `Settings.model`.
        device: `auto`, `cpu`, `cuda`, or one of several as `cuda:1`; `auto` takes CUDA where torch finds it.
        threads: for one call of the encoder; 0 means one per core.
        precision: None takes `fp32` on a CPU, which has no faster one, and the half precision that a GPU is made for.

    Raises:
        EncoderError: no such model or weights, the weights belong to another architecture, or the device or the
            precision cannot be had.
    """
    from indexer.open_clip_encoder import OpenClipEncoder  # noqa: PLC0415 - torch takes seconds to import

    return OpenClipEncoder.load(name, device=device, threads=threads, precision=precision)


def torch_build() -> str:
    """Return the version of torch, its threads and the devices that it finds."""
    from indexer.torch_runtime import devices, torch  # noqa: PLC0415

    return f"{torch.__version__}, {torch.get_num_threads()} threads, on {', '.join(devices())}"


def gpu_memory() -> list[tuple[int, int]]:
    """Return the free bytes and all bytes of each GPU; none unless torch uses them by now."""
    if "indexer.torch_runtime" not in sys.modules:
        return []
    from indexer.torch_runtime import gpu_memory as of_torch  # noqa: PLC0415

    return of_torch()


def use_threads(count: int) -> None:
    """Let a call of an encoder on torch take so many threads, in each thread of ours that has not made one yet."""
    from indexer.torch_runtime import torch  # noqa: PLC0415 - takes seconds to import

    torch.set_num_threads(count)


def accelerated(encoder: Encoder, cache: Path, *, threads: int, precision: Literal["fp32", "int8"] = "fp32") -> Encoder:
    """Return the same encoder run by ONNX Runtime: on a CPU up to twice as fast, once it has been exported.

    Args:
        encoder: what `load_encoder` returned, in single precision.
        cache: folder of exported models; `~` is the user's home. An export takes half a minute, a later load seconds.
        threads: for one call of the encoder; 0 means one per core.
        precision: `fp32`, whose embeddings mix with torch's, or `int8`, faster and less exact.

    Raises:
        EncoderError: ONNX Runtime is not installed, or the exported model is not equal to the original.
    """
    try:
        from indexer.onnx_encoder import OnnxEncoder  # noqa: PLC0415 - an extra, and torch takes seconds to import
    except ModuleNotFoundError as error:
        raise EncoderError(f"{error.name} is not installed; `pip install 'kindred[onnx]'` does.") from error
    return OnnxEncoder.of(encoder, cache, threads=threads, precision=precision)
