"""Writes a trained model as a folder that open_clip loads by `local-dir:`."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from indexer.torch_runtime import torch

# The demo model: most of its parameters are the table of the 49,408 tokens of CLIP's tokenizer, which comes with
# open_clip and so needs no download.
MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}

# Squashed rather than cropped: what stands at the border is part of the picture.
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def export(model: torch.nn.Module, config: dict[str, Any], out: Path) -> None:
    """Write the config and the weights, in half precision; each file is there whole or not at all, the weights last."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    _publish(out / "open_clip_config.json", (json.dumps(texts, indent=2) + "\n").encode())
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    _publish(out / "open_clip_model.safetensors", save(weights))


def _publish(path: Path, data: bytes) -> None:
    half = path.with_name(path.name + ".part")
    half.write_bytes(data)
    half.replace(path)
