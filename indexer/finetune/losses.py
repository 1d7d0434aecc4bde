"""The losses of the retrieval-optimised CLIP.

Schall, Barthel, Hezel, Jung, "Optimizing CLIP Models for Image Retrieval with Maintained Joint-Embedding
Alignment", SISAP 2024, with the settings of the authors' released code: margin 0.1 rad, scale 30. All embeddings are
brought to unit length here, and angles are computed in single precision whatever the rest runs in. InfoNCE is
open_clip's own.
"""

import math

from indexer.finetune.recipes import MARGIN, SCALE
from indexer.torch_runtime import torch

# Below it the sine of an angle has no gradient: that of a square root at 0 is infinite.
_LEAST_SQUARE = 1e-12


def margin_logits(
    cosines: torch.Tensor, targets: torch.Tensor, margin: float = MARGIN, scale: float = SCALE
) -> torch.Tensor:
    """Return `scale` times the cosines, those of the targets after `margin` was added to their angle.

    ArcFace (Deng et al., CVPR 2019): cos(angle + margin), and beyond the angle pi - margin, where that would rise
    again, cos(angle) - margin * sin(pi - margin). The two do not quite meet: there the formula steps down, by
    margin ** 2 / 2 or less, so that a greater angle never costs less.

    Args:
        cosines: shape (B, C).
        targets: which of them are of a picture and its own class, shape (B, C), bool.
        margin: radians.
        scale: above 0.
    """
    cosines = cosines.float()
    sines = (1 - cosines.square()).clamp(min=_LEAST_SQUARE, max=1).sqrt()
    turned = cosines * math.cos(margin) - sines * math.sin(margin)
    beyond = cosines - margin * math.sin(math.pi - margin)
    harder = torch.where(cosines > math.cos(math.pi - margin), turned, beyond)
    return scale * torch.where(targets, harder, cosines)


class ArcMargin(torch.nn.Module):
    """Classes told apart by angle: each has a learned proxy, and a picture must be nearer to its own by a margin."""

    def __init__(self, classes: int, dim: int, margin: float = MARGIN, scale: float = SCALE) -> None:
        super().__init__()
        self.proxies = torch.nn.Parameter(torch.empty(classes, dim))
        torch.nn.init.xavier_uniform_(self.proxies)
        self._margin, self._scale = margin, scale

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of pictures (B, dim) with class numbers (B,)."""
        cosines = _cosines(images, self.proxies)
        targets = torch.nn.functional.one_hot(labels, len(self.proxies)).bool()
        logits = margin_logits(cosines, targets, self._margin, self._scale)
        return torch.nn.functional.cross_entropy(logits, labels)


class MultiCaptionArcMargin(torch.nn.Module):
    """ArcMargin with the captions of a batch as its classes: each picture may own several of them, or none.

    Only pictures look for their captions, not captions for their pictures. `flatness` is the weight of a second term of
    the released code, the largest loss among the captions that are not the picture's own: it keeps the least likely
    one from falling out of sight, and holds for pictures without captions too.
    """

    def __init__(self, margin: float = MARGIN, scale: float = SCALE, flatness: float = 0.0) -> None:
        super().__init__()
        self._margin, self._scale, self._flatness = margin, scale, flatness

    def forward(self, images: torch.Tensor, captions: torch.Tensor, owned: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch.

        Args:
            images: shape (B, dim).
            captions: shape (N, dim), of the whole batch; N may be 0.
            owned: which captions belong to which picture, shape (B, N), bool.
        """
        if not len(captions):
            return images.float().sum() * 0
        logits = margin_logits(_cosines(images, captions), owned, self._margin, self._scale)
        losses = -torch.log_softmax(logits, dim=1)
        share = owned / owned.sum(dim=1, keepdim=True).clamp(min=1)
        loss = (share * losses).sum(dim=1)
        if self._flatness:
            loss = loss + self._flatness * ((1 - share) * losses).amax(dim=1)
        return loss.mean()


def _cosines(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return the cosine similarities (B, C) of (B, dim) and (C, dim)."""
    # Outside autocast: the angle of two near neighbours needs more than eight bits.
    with torch.autocast(rows.device.type, enabled=False):
        normalize = torch.nn.functional.normalize
        return normalize(rows.float(), dim=1) @ normalize(columns.float(), dim=1).T
