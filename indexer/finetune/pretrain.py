"""Training of the base of the demo model, from drawing its pictures to the folder that open_clip loads.

Every caption must find its picture among those of the batch and every picture its caption: CLIP's loss, taken from
open_clip. The same loss between two crops of each picture makes the embedding stand cropping.
"""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from indexer import demo
from indexer.finetune.export import export
from indexer.torch_runtime import open_clip, torch

_LOG = logging.getLogger(__name__)

# Pictures are kept a little larger than the model's input, so that crops of them are not blurred.
_MARGIN = 1.25

_LARGEST_SCALE = math.log(100)

# Most of its parameters are the table of the 49,408 tokens of CLIP's tokenizer, which comes with open_clip and so needs
# no download.
MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}

# Squashed rather than cropped: what stands at the border is part of the picture.
PREPROCESS: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


@dataclass(frozen=True)
class PretrainConfig:
    """All that the weights depend on.

    `seen_twice` pictures of each batch are cropped twice for the second loss, whose part is `views_weight` and whose
    similarities are multiplied by `views_scale`. `area` is the least part of a picture that a crop keeps; `by_colour`
    and `by_kind` say how often pictures of one colour, or of one kind, stand together (all three 0 to 1).
    """

    seed: int = 0
    pictures: int = 40_000
    epochs: int = 10
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup: int = 100
    by_colour: float = 0.45
    by_kind: float = 0.25
    seen_twice: int = 16
    views_weight: float = 0.5
    views_scale: float = 10.0
    area: float = 0.7
    model: dict[str, Any] = field(default_factory=lambda: MODEL)

    @property
    def image_size(self) -> int:
        """The side of the model's input, in pixels."""
        return int(self.model["vision_cfg"]["image_size"])


@dataclass(frozen=True)
class Pretrained:
    """What a run came to: `loss` is the mean of the last tenth of all steps, `first_loss` that of the first tenth."""

    config: PretrainConfig
    steps: int
    first_loss: float
    loss: float
    cpu_seconds: float
    parameters: int


@dataclass(frozen=True)
class _Pictures:
    """The training set: `frames` (N, side, side, 3); of each its captions and, by number, its colour and kind.

    It has `pairs` different pairs of kind and colour, in turn.
    """

    frames: npt.NDArray[np.uint8]
    captions: list[tuple[str, ...]]
    colours: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    pairs: int


def pretrain(config: PretrainConfig, out: Path) -> Pretrained:
    """Draw a training set, train a model on it, and export that to the folder `out`."""
    # One thread sums in one order: the same seed gives the same weights.
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    started = time.process_time()
    model: Any = open_clip.CLIP(**config.model).to(memory_format=torch.channels_last)  # convolves 1.4 times faster
    pictures = _draw(config, round(config.image_size * _MARGIN))
    _LOG.info("drew %d pictures in %.0f s of CPU time", config.pictures, time.process_time() - started)
    losses = _fit(model, pictures, config)
    export(model, config.model, PREPROCESS, out, half=True)
    tenth = math.ceil(len(losses) / 10)
    return Pretrained(
        config=config,
        steps=len(losses),
        first_loss=float(np.mean(losses[:tenth])),
        loss=float(np.mean(losses[-tenth:])),
        cpu_seconds=time.process_time() - started,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _fit(model: Any, pictures: _Pictures, config: PretrainConfig) -> list[float]:
    """Train the model in place and return the loss of every step."""
    rng = np.random.default_rng(config.seed)
    steps = config.epochs * math.ceil(config.pictures / config.batch)
    optimizer = _optimizer(model, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate(step, steps, config.warmup))
    tokenize = open_clip.SimpleTokenizer(context_length=model.context_length)
    seen = torch.zeros(model.vocab_size, dtype=torch.bool)
    losses: list[float] = []
    for batch in _batches(pictures, config, rng):
        tokens = tokenize([str(rng.choice(pictures.captions[i])) for i in batch])
        seen[tokens[tokens > 0]] = True  # 0 fills up to the length of the context
        loss = _loss(model, pictures.frames[batch], tokens, config)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, _LARGEST_SCALE)
        losses.append(loss.item())
        if len(losses) % 100 == 0:
            _LOG.info("step %d of %d: loss %.3f", len(losses), steps, np.mean(losses[-100:]))
    with torch.no_grad():
        # What was never trained is noise: at zero, a word that the model does not know says nothing.
        model.token_embedding.weight[~seen] = 0
    return losses


def _draw(config: PretrainConfig, side: int) -> _Pictures:
    """Draw the training set: pictures of the fold "train", squashed to squares."""
    frames = np.empty((config.pictures, side, side, 3), np.uint8)
    colours, kinds = np.empty((2, config.pictures), np.int64)
    captions = []
    for i, picture in enumerate(demo.collection(config.pictures, config.seed, demo.Fold.TRAIN)):
        frames[i] = np.asarray(picture.image.resize((side, side), Image.Resampling.BICUBIC))
        colours[i] = demo.COLOURS.index(picture.instance.colour)
        kinds[i] = demo.KINDS.index(picture.instance.kind)
        captions.append(picture.captions)
    return _Pictures(frames, captions, colours, kinds, len(demo.pairs(config.pictures, config.seed)))


def _batches(pictures: _Pictures, config: PretrainConfig, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the pictures of each batch, epoch by epoch, in random order.

    A collection has its pairs in turn. Kept in turns, a batch hardly ever has a pair twice, and a caption is seldom
    told that it does not fit a picture which it fits. Colour is learned at once and kind is not, so in many turns
    pictures of one colour stand together: there only the kind tells captions apart. Where those of one kind stand
    together, only the colour does.
    """
    everything = np.arange(config.pictures)
    for _ in range(config.epochs):
        turns = np.split(everything, range(pictures.pairs, config.pictures, pictures.pairs))
        order = []
        for i in rng.permutation(len(turns)):
            turn = rng.permutation(turns[i])
            dice = rng.random()
            if dice < config.by_colour:
                turn = turn[np.argsort(pictures.colours[turn], kind="stable")]
            elif dice < config.by_colour + config.by_kind:
                turn = turn[np.argsort(pictures.kinds[turn], kind="stable")]
            order.append(turn)
        yield from np.split(np.concatenate(order), range(config.batch, config.pictures, config.batch))


def _loss(model: Any, frames: npt.NDArray[np.uint8], tokens: torch.Tensor, config: PretrainConfig) -> torch.Tensor:
    """Return the loss of a batch: `frames` (B, side, side, 3), `tokens` (B, context)."""
    contrast = open_clip.ClipLoss()
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    twice = images[: config.seen_twice]
    views = _view(torch.cat([images, twice]), config.image_size, config.area)
    image, again = model.encode_image(views, normalize=True).split([len(images), len(twice)])
    loss = contrast(image, model.encode_text(tokens, normalize=True), model.logit_scale.exp())
    if config.seen_twice:
        loss = loss + config.views_weight * contrast(image[: len(twice)], again, torch.tensor(config.views_scale))
    return torch.as_tensor(loss)


def _view(images: torch.Tensor, size: int, least_area: float) -> torch.Tensor:
    """Return a random crop of each picture, in other light: (B, 3, side, side) bytes to (B, 3, size, size), -1 to 1."""
    count = len(images)
    side = torch.sqrt(torch.empty(count).uniform_(least_area, 1))
    stretch = torch.exp(torch.empty(count).uniform_(-0.1, 0.1))
    sides = torch.stack([side * stretch, side / stretch], dim=1).clamp(max=1)
    shifts = torch.empty(count, 2).uniform_(-1, 1) * (1 - sides)
    affine = torch.cat([torch.diag_embed(sides), shifts[:, :, None]], dim=2)
    grid = torch.nn.functional.affine_grid(affine, [count, 3, size, size], align_corners=False)
    crops = torch.nn.functional.grid_sample(images.float() / 127.5 - 1, grid, align_corners=False)
    contrast = torch.empty(count, 1, 1, 1).uniform_(0.85, 1.15)
    brightness = torch.empty(count, 1, 1, 1).uniform_(-0.1, 0.1)
    return (crops * contrast + brightness).clamp(-1, 1)


def _optimizer(model: torch.nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


def _learning_rate(step: int, steps: int, warmup: int) -> float:
    """Return the part of the learning rate for a step: rising, then falling as a cosine."""
    return min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
