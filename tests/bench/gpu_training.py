"""How much of a card's arithmetic a training step uses: `python -m tests.bench.gpu_training`.

A large model with random weights takes GPR-FT's steps on random pictures that are on the card already. Its arithmetic
is counted by torch (forward and backward), and set against what one large matrix product reaches in the same run.
"""

import json
import time
from collections.abc import Callable

import numpy as np
import typer
from torch.utils.flop_counter import FlopCounterMode

from indexer.finetune.objectives import ImageObjective
from indexer.finetune.recipes import Recipe, RunConfig
from indexer.torch_runtime import open_clip, torch

_CLASSES, _STEPS, _WARM = 1_000, 20, 3


def seconds(work: Callable[[], object], times: int) -> float:
    """Return how long one turn of some work takes, once it is warm."""
    for _ in range(_WARM):
        work()
    _wait()
    start = time.perf_counter()
    for _ in range(times):
        work()
    _wait()
    return (time.perf_counter() - start) / times


def matrix_rate(device: str, side: int) -> float:
    """Return the arithmetic, per second, of a product of two square matrices in bf16."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds(lambda: left @ right, _STEPS)


def main(model: str = "ViT-B-16", batch: int = 128, steps: int = _STEPS) -> None:
    """Print images per second, and the share of the matrix product's rate."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = RunConfig(recipe=Recipe.GPR_FT)
    clip = open_clip.create_model(model).to(device)
    dim = int(open_clip.get_model_config(model)["embed_dim"])
    objective = ImageObjective(clip, dim, np.arange(_CLASSES), config).to(device).train()
    optimizer = torch.optim.AdamW([each for group in objective.trained.values() for each in group], lr=1e-6, fused=True)
    side = clip.visual.image_size
    height, width = (side, side) if isinstance(side, int) else side
    pixels = torch.randn(batch, 3, height, width, device=device)
    classes = torch.randint(_CLASSES, (batch,), device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = objective(pixels, classes, None, None)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    taken = seconds(step, steps)
    reached = counter.get_total_flops() / taken
    limit = matrix_rate(device, 8192 if device == "cuda" else 512)
    facts = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "model": model,
        "batch": batch,
        "images_per_second": batch / taken,
        "tflops": reached / 1e12,
        "matrix_product_tflops": limit / 1e12,
        "share": reached / limit,
    }
    print(json.dumps(facts))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    typer.run(main)
