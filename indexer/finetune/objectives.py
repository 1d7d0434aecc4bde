"""What each stage minimises, which parameters it may change, and what it takes of a picture.

An objective is a module whose `forward` is given one batch and returns its losses by name; "loss" is the one that is
minimised, the others are its parts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from indexer.finetune.batches import Indexes
from indexer.finetune.losses import ArcMargin, MultiCaptionArcMargin
from indexer.finetune.recipes import RunConfig
from indexer.torch_runtime import open_clip, torch

Losses = dict[str, torch.Tensor]
Tokenize = Callable[[list[str]], torch.Tensor]

# Texts a call when captions are encoded by a locked tower.
_TEXTS = 512


class Objective(torch.nn.Module):
    """One stage's loss, as the loop sees it, of a model of which only some parameters may train."""

    def __init__(self, model: Any, may_train: Callable[[str], bool]) -> None:
        super().__init__()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(may_train(name))
        self.model = model

    @property
    def trained(self) -> dict[str, list[torch.nn.Parameter]]:
        """The parameters that the stage may change, in groups that have a learning rate each."""
        return {"model": [parameter for parameter in self.model.parameters() if parameter.requires_grad]}

    def inputs(self, indexes: Indexes, pixels: torch.Tensor | None, rng: np.random.Generator) -> tuple[Any, ...]:
        """Return what `forward` takes of the pictures `indexes` (B,), whose pixels are (B, 3, height, width)."""
        raise NotImplementedError


class ImageObjective(Objective):
    """GPR-FT: pictures against learned class proxies. With captions MCIP: against captions, too.

    Captions come encoded: the text tower is locked, so what it makes of a caption never changes.
    """

    def __init__(
        self, model: Any, dim: int, classes: Indexes, config: RunConfig, captions: "Captions | None" = None
    ) -> None:
        super().__init__(model, lambda name: name.startswith("visual."))
        self.arc = ArcMargin(int(classes.max()) + 1, dim, config.margin, config.scale)
        self._contrast = MultiCaptionArcMargin(config.margin, config.scale, config.flatness)
        self._classes = torch.from_numpy(classes)
        self._captions, self._part = captions, config.caption_part

    @property
    def trained(self) -> dict[str, list[torch.nn.Parameter]]:
        """The image tower with its projector, and the proxies."""
        return {**super().trained, "proxies": list(self.arc.parameters())}

    def inputs(self, indexes: Indexes, pixels: torch.Tensor | None, _: np.random.Generator) -> tuple[Any, ...]:
        """Return pixels, class numbers (B,), captions (N, dim), and whose they are (B, N)."""
        found = self._captions.of(indexes) if self._captions else (None, None)
        return pixels, self._classes[indexes], *found

    def forward(
        self, pixels: torch.Tensor, classes: torch.Tensor, captions: torch.Tensor | None, owned: torch.Tensor | None
    ) -> Losses:
        """Return ArcMargin's loss, and with captions MCArcMargin's and the weighted sum."""
        images = self.model.encode_image(pixels, normalize=True)
        arc = self.arc(images, classes)
        if captions is None or owned is None:
            return {"loss": arc}
        contrast = self._contrast(images, captions, owned)
        return {"loss": (1 - self._part) * arc + self._part * contrast, "arc": arc, "captions": contrast}


class TextObjective(Objective):
    """Re-A: what is not locked of the text tower, against embeddings (n, dim) of the locked image tower."""

    def __init__(
        self, model: Any, images: torch.Tensor, captions: Sequence[Sequence[str]], tokenize: Tokenize, layers: int
    ) -> None:
        super().__init__(model, lambda name: not name.startswith("visual.") and name != "logit_bias")
        model.lock_text_tower(unlocked_layers=layers)
        self._images, self._captions, self._tokenize = images, captions, tokenize
        self._contrast = clip_loss()

    def inputs(self, indexes: Indexes, _: torch.Tensor | None, rng: np.random.Generator) -> tuple[Any, ...]:
        """Return embeddings (B, dim), and the tokens (B, context) of one caption of each."""
        return self._images[indexes], self._tokenize(one_each(self._captions, indexes, rng))

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> Losses:
        """Return the InfoNCE loss."""
        return {
            "loss": self._contrast(images, self.model.encode_text(tokens, normalize=True), self.model.logit_scale.exp())
        }


class ClipObjective(Objective):
    """Plain CLIP: both towers against each other."""

    def __init__(self, model: Any, captions: Sequence[Sequence[str]], tokenize: Tokenize) -> None:
        super().__init__(model, lambda name: name != "logit_bias")  # that is the sigmoid loss's
        self._captions, self._tokenize = captions, tokenize
        self._contrast = clip_loss()

    def inputs(self, indexes: Indexes, pixels: torch.Tensor | None, rng: np.random.Generator) -> tuple[Any, ...]:
        """Return pixels, and the tokens (B, context) of one caption of each."""
        return pixels, self._tokenize(one_each(self._captions, indexes, rng))

    def forward(self, pixels: torch.Tensor, tokens: torch.Tensor) -> Losses:
        """Return the InfoNCE loss."""
        image, text = self.model.encode_image(pixels, normalize=True), self.model.encode_text(tokens, normalize=True)
        return {"loss": self._contrast(image, text, self.model.logit_scale.exp())}


class Captions:
    """The captions of a training set, each distinct one encoded once by the locked text tower."""

    def __init__(
        self, captions: Sequence[Sequence[str]], most: int, encode: Callable[[list[str]], torch.Tensor]
    ) -> None:
        numbers: dict[str, int] = {}
        self._numbers = [[numbers.setdefault(text, len(numbers)) for text in texts[:most]] for texts in captions]
        texts = list(numbers)
        self._embeddings = torch.cat([encode(texts[i : i + _TEXTS]) for i in range(0, len(texts), _TEXTS)])

    def of(self, indexes: Indexes) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the captions of a batch, shape (N, dim), and which of them each picture owns, shape (B, N), bool.

        A caption of several pictures is one column that each of them owns: it must not push any of them away.
        """
        owners, numbers = [], []
        for row, index in enumerate(indexes):
            owners += [row] * len(self._numbers[index])
            numbers += self._numbers[index]
        distinct, columns = np.unique(np.array(numbers, np.int64), return_inverse=True)
        owned = torch.zeros(len(indexes), len(distinct), dtype=torch.bool)
        owned[owners, columns] = True
        return self._embeddings[distinct], owned


def one_each(captions: Sequence[Sequence[str]], indexes: Indexes, rng: np.random.Generator) -> list[str]:
    """Return one caption of each picture of a batch."""
    return [str(rng.choice(captions[i])) for i in indexes]


def clip_loss() -> Any:
    """Return open_clip's InfoNCE loss, over the batches of all processes where there are several."""
    many = torch.distributed.is_initialized()
    return open_clip.ClipLoss(
        local_loss=many,
        gather_with_grad=many,
        rank=torch.distributed.get_rank() if many else 0,
        world_size=torch.distributed.get_world_size() if many else 1,
    )
