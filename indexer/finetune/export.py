"""Writes a trained model as a folder that open_clip loads by `local-dir:`."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from indexer.torch_runtime import torch

WEIGHTS = "open_clip_model.safetensors"


def export(
    model: torch.nn.Module, config: dict[str, Any], preprocess: dict[str, Any], out: Path, *, half: bool
) -> None:
    """Write the config and the weights; each file is there whole or not at all, the weights last.

    Args:
        model: an open_clip model.
        config: its architecture, as open_clip's `model_cfg`.
        preprocess: what is done to a picture, as open_clip's `preprocess_cfg`.
        out: the folder.
        half: in half precision, rather than as the weights are.
    """
    out.mkdir(parents=True, exist_ok=True)
    texts = {"model_cfg": config, "preprocess_cfg": preprocess}
    _publish(out / "open_clip_config.json", (json.dumps(texts, indent=2) + "\n").encode())
    weights = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    _publish(out / WEIGHTS, save(weights))


def _publish(path: Path, data: bytes) -> None:
    half = path.with_name(path.name + ".part")
    half.write_bytes(data)
    half.replace(path)
