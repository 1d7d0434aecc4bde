"""Which pictures make a batch, and how they look this time.

All that is random is a function of the seed and the place: stage, epoch, position. So a run that was interrupted goes
on as if it had not been, whatever the number of processes that decode.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from indexer.errors import ImageError, TrainingError
from indexer.finetune.recipes import Augmentation
from indexer.preprocessing import limit_aspect
from indexer.samples import Samples
from indexer.torch_runtime import torch, transforms

Indexes = npt.NDArray[np.int64]

_KEPT_BYTES = 2 * 2**30
_RESIZES = ("squash", "shortest")


@dataclass(frozen=True)
class Place:
    """One picture's turn: the `index` of the picture, and where in the run that is."""

    stage: int
    epoch: int
    position: int
    index: int


class Chance(IntEnum):
    """What is left to chance."""

    ORDER = 1
    PICTURE = 2
    MODEL = 3
    CAPTION = 4


def random_at(what: Chance, *place: int) -> np.random.Generator:
    """Return the randomness of one thing at a place in a run, independent of every other thing's and place's."""
    # The kind goes first: numpy takes (1, 2) and (1, 2, 0) for the same seed.
    return np.random.default_rng((what, *place))


def epoch_order(count: int, rng: np.random.Generator, classes: Indexes | None = None) -> Indexes:
    """Return the order in which `count` pictures are seen in one epoch, shape (count,).

    With `classes`, the class number of each picture, every class is seen equally often, give or take one: classes take
    turns, and each deals its own pictures from a shuffled deck that is shuffled anew when it is used up.
    """
    if classes is None:
        return rng.permutation(count)
    decks = [np.flatnonzero(classes == number) for number in range(int(classes.max()) + 1)]
    turns = -(-count // len(decks))
    dealt = [np.concatenate([rng.permutation(deck) for _ in range(-(-turns // len(deck)))])[:turns] for deck in decks]
    order = np.stack(dealt, axis=1)
    return np.concatenate([rng.permutation(turn) for turn in order])[:count]


def steps_per_epoch(count: int, batch: int) -> int:
    """Return how many whole batches `count` pictures make; fewer than a batch make one."""
    return max(1, count // batch)


def batches(order: Indexes, batch: int, parts: int) -> list[Indexes]:
    """Cut an epoch into batches of equal size, divisible into `parts`; what is left over waits for the next epoch.

    Raises:
        TrainingError: there are fewer pictures than parts.
    """
    size = min(batch, len(order)) // parts * parts
    if not size:
        raise TrainingError(f"{len(order)} pictures cannot be divided into {parts} parts; there must be one for each.")
    return [order[i * size : (i + 1) * size] for i in range(steps_per_epoch(len(order), batch))]


class Pictures(torch.utils.data.Dataset[tuple[int, torch.Tensor]]):
    """Training pictures as the image tower takes them, changed anew at every place.

    A picture that cannot be decoded is stood in for by the next one that can, so that batches keep their size.
    """

    def __init__(
        self, samples: Samples, preprocess: dict[str, Any], changes: Augmentation, seed: int, keep: bool
    ) -> None:
        if preprocess["resize_mode"] not in _RESIZES:
            raise TrainingError(
                f"Training knows the resize modes {', '.join(_RESIZES)}; this model has {preprocess['resize_mode']}."
            )
        size = preprocess["size"]
        height, width = (size, size) if isinstance(size, int) else size
        self._samples, self._seed = samples, seed
        self._squash = preprocess["resize_mode"] == "squash"
        self._frame = (int(height * changes.margin), int(width * changes.margin))
        self._filter = Image.Resampling[preprocess["interpolation"].upper()]
        self._kept: dict[int, torch.Tensor] = {}
        self._room = _KEPT_BYTES if keep else 0
        self._change = transforms.Compose(
            [
                transforms.RandomCrop((height, width)),
                transforms.RandomHorizontalFlip(changes.flip),
                transforms.ColorJitter(changes.jitter, changes.jitter, changes.jitter),
                transforms.ToDtype(torch.float32, scale=True),
                transforms.Normalize(preprocess["mean"], preprocess["std"]),
            ]
        )

    def __getitem__(self, place: Place) -> tuple[int, torch.Tensor]:
        """Return the index of the picture that was taken, and its pixels (3, height, width)."""
        index, frame = self._sound(place.index)
        with torch.random.fork_rng(devices=[]):
            rng = random_at(Chance.PICTURE, self._seed, place.stage, place.epoch, place.position)
            # Not torch.manual_seed, which looks for every kind of accelerator, and takes as long as the changes.
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            return index, self._change(frame)

    def _sound(self, index: int) -> tuple[int, torch.Tensor]:
        for i in range(len(self._samples)):
            other = (index + i) % len(self._samples)
            try:
                return other, self._resized(other)
            except ImageError:
                continue
        raise TrainingError("None of the training pictures can be decoded.")

    def _resized(self, index: int) -> torch.Tensor:
        """Return a picture as bytes (3, h, w), a little larger than the model's input."""
        if index in self._kept:
            return self._kept[index]
        image = self._samples.image(index)
        height, width = self._frame
        if not self._squash:
            image = limit_aspect(image)
            ratio = max(height / image.height, width / image.width)
            height, width = max(height, round(image.height * ratio)), max(width, round(image.width * ratio))
        frame = torch.from_numpy(np.array(image.resize((width, height), self._filter))).permute(2, 0, 1)
        if frame.nbytes <= self._room:
            self._room -= frame.nbytes
            self._kept[index] = frame
        return frame


def collate(pictures: Sequence[tuple[int, torch.Tensor]]) -> tuple[Indexes, torch.Tensor]:
    """Return the indexes (B,) and the pixels (B, 3, height, width) of a batch."""
    indexes, pixels = zip(*pictures, strict=True)
    return np.array(indexes), torch.stack(pixels)


def load(pictures: Pictures, plan: list[list[Place]], workers: int) -> Iterator[tuple[Indexes, torch.Tensor]]:
    """Yield the batches of a plan, decoded by `workers` processes, or by this one."""
    loader: Any = torch.utils.data.DataLoader(
        pictures, batch_sampler=plan, num_workers=workers, collate_fn=collate, pin_memory=torch.cuda.is_available()
    )
    yield from loader
