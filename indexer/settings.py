"""Settings of a deployment: the only reader of the environment."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What both rooms agree on. Every field is read from `KINDRED_<FIELD>`; a command's flags hold for one run."""

    model_config = SettingsConfigDict(
        env_prefix="KINDRED_",
        frozen=True,
        use_attribute_docstrings=True,
        extra="forbid",
        # KINDRED_MODEL is a name from the field's vocabulary; pydantic reserves the prefix for its own methods.
        protected_namespaces=(),
    )

    snapshots: Path = Path("snapshots")
    """Folder of snapshots: the indexer publishes into it, the service follows it."""

    model: str = "demo"
    """Encoder for new snapshots: `demo`, an open_clip name, `hf-hub:org/name` or `local-dir:/path`."""

    pretrained: str | None = None
    """Weights for an open_clip name: a pretrained tag or a checkpoint file (`.pth`, `.pt`, `.safetensors`)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the encoder runs; `auto` takes CUDA where torch finds it."""

    threads: int = Field(default=0, ge=0)
    """Threads that one call of the encoder may use; 0 is one per core, and in the service one for a small encoder."""

    max_file_bytes: int = Field(default=64 * 2**20, gt=0)
    """Largest picture file, in bytes."""

    max_pixels: int = Field(default=50_000_000, gt=0)
    """Most pixels a picture may have once decoded. A JPEG of up to 64 times as many is decoded at reduced size."""

    backend: Literal["auto", "torch", "onnx", "onnx-int8"] = "auto"
    """What runs the encoder of a build; `auto` takes ONNX Runtime for large ones on a CPU, where it is installed."""

    cache: Path = Path("~/.cache/kindred")
    """Folder for models exported to ONNX."""

    workers: int = Field(default=0, ge=0)
    """Processes that read and decode; 0 means one per core, and four per core where pictures come over a network."""

    decode_seconds: int = Field(default=30, gt=0)
    """Processor time that one picture may take to be decoded, in seconds; four times as much by the clock."""

    decode_memory: int = Field(default=2 * 2**30, gt=0)
    """Memory that one picture may take to be decoded, in bytes."""

    fetch_hosts: tuple[str, ...] = ()
    """Hosts (JSON list) that pictures may be fetched from by http(s); `*` is every public one. Empty: none."""
