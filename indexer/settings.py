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
    """Threads that one call of the encoder may use; 0 means one per core."""

    max_file_bytes: int = Field(default=64 * 2**20, gt=0)
    """Largest picture file, in bytes."""

    max_pixels: int = Field(default=50_000_000, gt=0)
    """Most pixels a picture may have once decoded. A JPEG of up to 64 times as many is decoded at reduced size."""
