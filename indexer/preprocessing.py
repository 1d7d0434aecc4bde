"""Preprocessing: what a picture becomes before an image tower sees it, by torch core alone.

The second door to torch. Decoding processes take a `Preprocessing` along, and there are many of them: torch by itself
is imported in 2 s, with torchvision and open_clip it takes 8 (measured), and they have nothing to add.

Pictures are resized by torch's antialiased resize of bytes, which torchvision's transforms call as well. It takes a
sixth of the time of Pillow's, which open_clip's own transform calls, and counts with shorter weights: on 300
photographs values differ by 1 of 255 at most, but for 1 in 600,000 that differ by 2, where a picture is hardly shrunk.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from PIL import Image

from indexer.encoder import Box, Pixels
from indexer.errors import EncoderError, ImageError, Reason
from indexer.images import RGB, THUMBNAIL_SIDE

ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]

# What open_clip's names stand for in evaluation; "random" is a wish for training.
_INTERPOLATIONS: dict[str, Interpolation] = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}
_RESIZE_MODES = ("shortest", "longest", "squash")

# Resizing the shorter side would blow a picture of 1 x 65,535 pixels up to gigabytes before the centre is cut out.
# Cutting to this aspect first leaves that centre as it was, give or take a pixel.
_MAX_ASPECT = 16


@dataclass(frozen=True)
class Preprocessing:
    """open_clip's evaluation transform without its last step, normalisation, which encoders do themselves.

    Attributes:
        size: height and width of what comes out.
        mean: of each colour, from 0 to 1; encoders subtract it.
        std: of each colour, from 0 to 1; encoders then divide by it.
        interpolation: how a picture is resized.
        resize_mode: `shortest` resizes to cover `size` and cuts the centre out, `longest` resizes to fit into `size`
            and fills the rest, `squash` resizes to `size`.
        fill_color: what `longest` fills with, 0 to 255.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill_color: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Return what an open_clip `preprocess_cfg` describes.

        Raises:
            EncoderError: it names a way to resize that is not known here.
        """
        mode, interpolation = config["resize_mode"], config["interpolation"]
        if mode not in _RESIZE_MODES:
            raise EncoderError(f"The model's resize mode is {mode!r}; known are {', '.join(_RESIZE_MODES)}.")
        if interpolation not in _INTERPOLATIONS:
            raise EncoderError(
                f"The model's interpolation is {interpolation!r}; known are {', '.join(_INTERPOLATIONS)}."
            )
        height, width = np.broadcast_to(config["size"], 2).tolist()
        return cls(
            size=(height, width),
            mean=_three(config["mean"]),
            std=_three(config["std"]),
            # Where height and width differ, open_clip resizes the shorter side bicubically whatever its config says.
            interpolation="bicubic" if mode == "shortest" and height != width else _INTERPOLATIONS[interpolation],
            resize_mode=mode,
            fill_color=config["fill_color"],
        )

    def __call__(self, picture: Image.Image | RGB) -> Pixels:
        """Turn an upright RGB picture of any size into what `Encoder.encode_images` takes, shape (3, *size).

        Raises:
            ImageError: there is not enough memory for it.
        """
        rgb = np.asarray(picture)
        if self.resize_mode == "shortest":
            left, top, right, bottom = _central(rgb.shape[1], rgb.shape[0])
            rgb = rgb[top:bottom, left:right]
        resized = _resized(rgb, *self._sides(*rgb.shape[:2]), self.interpolation)
        return _framed(resized, self.size, self.fill_color if self.resize_mode == "longest" else 0)

    def covers(self, height: int, width: int) -> Box:
        """Return what part of a picture of so many pixels comes out; beyond 0 and 1 where it is filled up."""
        left, top, right, bottom = _central(width, height) if self.resize_mode == "shortest" else (0, 0, width, height)
        sides = self._sides(bottom - top, right - left)
        (above, below), (before, after) = (_span(have, want) for have, want in zip(sides, self.size, strict=True))
        across, down = (right - left) / width, (bottom - top) / height
        return (
            left / width + before * across,
            top / height + above * down,
            left / width + after * across,
            top / height + below * down,
        )

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that a picture is resized to, rounded as open_clip and torchvision round."""
        if self.resize_mode == "squash":
            return self.size
        if self.resize_mode == "shortest" and self.size[0] == self.size[1]:
            shorter, longer = self.size[0], int(self.size[0] * max(height, width) / min(height, width))
            return (shorter, longer) if height <= width else (longer, shorter)
        ratios = height / self.size[0], width / self.size[1]
        ratio = max(ratios) if self.resize_mode == "longest" else min(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))


def shrink(picture: Image.Image | RGB) -> Image.Image:
    """Return an RGB picture that fits a square of `THUMBNAIL_SIDE` pixels; one that does is left as it is.

    Raises:
        ImageError: there is not enough memory for it.
    """
    rgb = np.asarray(picture)
    height, width = rgb.shape[:2]
    ratio = max(height, width) / THUMBNAIL_SIDE
    if ratio <= 1:
        return Image.fromarray(rgb)
    small = _resized(rgb, max(1, round(height / ratio)), max(1, round(width / ratio)), "bicubic")
    return Image.fromarray(small.permute(1, 2, 0).numpy())


def limit_aspect(image: Image.Image) -> Image.Image:
    """Cut the centre out of a picture that is more than `_MAX_ASPECT` times as long as it is wide."""
    box = _central(*image.size)
    return image if box == (0, 0, *image.size) else image.crop(box)


def _central(width: int, height: int) -> tuple[int, int, int, int]:
    """Return the left, top, right and bottom of the part of a picture that is no longer than `_MAX_ASPECT` allows."""
    side = min(width, height) * _MAX_ASPECT
    left, top = max(0, (width - side) // 2), max(0, (height - side) // 2)
    return left, top, left + min(width, side), top + min(height, side)


def _three(values: Any) -> tuple[float, float, float]:
    """Return one value for each colour; open_clip also takes one for all."""
    return cast("tuple[float, float, float]", tuple(np.broadcast_to(values, 3).tolist()))


def _resized(rgb: RGB, height: int, width: int, interpolation: Interpolation) -> torch.Tensor:
    """Return a picture in another size, shape (3, height, width)."""
    # torch warns of memory that it must not write to, such as Pillow's, though it only reads it here.
    pixels = torch.from_numpy(np.require(rgb, requirements=["C", "W"])).permute(2, 0, 1)[None]
    have_height, have_width = rgb.shape[:2]
    if (have_height, have_width) == (height, width):
        return pixels[0]
    # The order matters, since values are rounded and cut off at 0 and 255 in between. torch resizes the width first, as
    # Pillow does but for this case, since version 13 (https://github.com/python-pillow/Pillow/pull/9549).
    height_first = have_height > height and have_height - height > 2 * (have_width - width)
    try:
        for size in [(height, have_width)] * height_first + [(height, width)]:
            pixels = torch.nn.functional.interpolate(pixels, size, mode=interpolation, antialias=True)
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise ImageError(Reason.TOO_MUCH_MEMORY, "The picture takes more memory than there is.") from error
    return pixels[0]


def _cut(have: int, want: int) -> tuple[int, int]:
    """Return how many pixels of a side are cut off before the part that is kept, and how many are filled in before it.

    Halves are rounded to even numbers in the first, and down in the second: torchvision's ways.
    """
    off = max(0, round((have - want) / 2))
    return off, (want - min(have - off, want)) // 2


def _span(have: int, want: int) -> tuple[float, float]:
    """Return where a side of `have` pixels that is cut or filled up to `want` begins and ends, as shares of it."""
    off, filled = _cut(have, want)
    return (off - filled) / have, (off - filled + want) / have


def _framed(resized: torch.Tensor, size: tuple[int, int], fill: int) -> Pixels:
    """Cut the centre out, or fill what is missing around it, as torchvision's centre crop does."""
    (height, width), (have_height, have_width) = size, resized.shape[1:]
    (top, above), (left, before) = _cut(have_height, height), _cut(have_width, width)
    part = resized[:, top : top + height, left : left + width].numpy()
    if part.shape[1:] == size:
        return np.ascontiguousarray(part)
    frame = np.full((3, height, width), fill, np.uint8)
    frame[:, above : above + part.shape[1], before : before + part.shape[2]] = part
    return frame
