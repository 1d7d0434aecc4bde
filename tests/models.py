"""Small open_clip models with random weights, made in a moment: real architecture, real files, real loading code."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from indexer.torch_runtime import open_clip, torch

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
PREPROCESS = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"}


def new_model(seed: int, config: dict[str, Any] = CONFIG) -> Any:
    """Return an open_clip model with random weights."""
    torch.manual_seed(seed)
    return open_clip.CLIP(**config)


def save_model(folder: Path, model: Any, config: dict[str, Any] = CONFIG) -> str:
    """Write a model into a `local-dir:` folder and return its name."""
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return f"local-dir:{folder}"
