"""Pictures: found in a folder, decoded from bytes by one policy for indexer and service.

The policy: size cap, magic bytes of an allowed format, pixel limit from the header, first frame, EXIF orientation, then
8-bit RGB. Pillow's own `convert("RGB")` turns 16-bit pictures white and transparent ones black, so those modes are
converted here.

Pillow reads every header and decides what is a picture. The pixels of a plain JPEG come from simplejpeg, which takes
half the time: the same libjpeg-turbo, but into an array, where Pillow copies twice before torch or numpy can look.
"""

import hashlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from indexer.errors import ImageError, Reason
from indexer.settings import Settings

RGB = NDArray[np.uint8]
"""Shape (height, width, 3): a picture of any size, upright, 8-bit RGB."""

MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
}
FORMATS = tuple(MEDIA_TYPES)
THUMBNAIL_SIDE = 256

# Pixels that are converted at a time.
_STRIP = 2**20

# MPO is several JPEGs in one file, as some cameras write.
_JPEG = ("JPEG", "MPO")

# Any marker that begins a segment: no stuffing, fill byte, restart nor start.
_SEGMENT = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])")
_END, _SCAN = b"\xd9", b"\xda"

# What a header is made of, and how often a file is read from: honest ones stay far below.
_MOST_SEGMENTS = 10_000
_MOST_READS = 200_000

# Times that all pixels of the largest picture may be gone through: a progressive JPEG has 10 or so scans.
_MOST_PASSES = 20

# A JPEG can be decoded at 1/2, 1/4 or 1/8 of its side for little memory.
_JPEG_REDUCTIONS = (2, 4, 8)

# How a picture is turned upright, by its EXIF orientation; the last four swap width and height.
_TURNS: dict[int, Callable[[NDArray[np.void]], NDArray[np.void]]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.T,
    6: lambda stored: stored[::-1].T,
    7: lambda stored: stored[::-1, ::-1].T,
    8: lambda stored: stored.T[::-1],
}
_SWAPPING = (5, 6, 7, 8)

# Our own limit is checked from the header, before any pixel is decoded, and is an error rather than a warning.
Image.MAX_IMAGE_PIXELS = None

# Pillow warns of damaged metadata. The pixels decide whether a picture is used.
warnings.filterwarnings("ignore", module=r"PIL\.")


class _File(io.BytesIO):
    """The bytes of a file, read in so many goes at most: Pillow reads a header of a million parts for many seconds."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > _MOST_READS:
            raise ImageError(Reason.UNREADABLE, "The picture is made of too many parts.")
        return super().read(size)


@dataclass(frozen=True)
class ImageFile:
    """A file that may be a picture: `path` is relative to the collection, with `/` between its parts."""

    path: str
    location: Path


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded picture; `width` and `height` are the whole picture's, in pixels, where `rgb` may be a reduced one."""

    rgb: RGB
    media_type: str
    width: int
    height: int

    @cached_property
    def image(self) -> Image.Image:
        """The picture as Pillow's. That is a copy: 20 ms for 12 million pixels."""
        return Image.fromarray(self.rgb)


@dataclass(frozen=True)
class DecodePolicy:
    """Limits for one picture: bytes of the file, pixels once decoded."""

    max_bytes: int
    max_pixels: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the limits of a deployment."""
        return cls(settings.max_file_bytes, settings.max_pixels)


def scan(root: Path) -> Iterator[ImageFile]:
    """Yield every regular file below `root` in a stable order; hidden files and linked folders are left out.

    Which of them are pictures is for `decode` to say: names and endings do not tell. A folder that cannot be listed is
    yielded like a file, so that reading it reports why.
    """
    unlisted: list[str] = []
    for folder, folders, names in os.walk(root, onerror=lambda error: unlisted.append(error.filename)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            location = Path(folder, name)
            if not name.startswith(".") and _may_be_file(location):
                yield ImageFile(location.relative_to(root).as_posix(), location)
    for name in unlisted:
        yield ImageFile(Path(name).relative_to(root).as_posix(), Path(name))


def read(file: ImageFile, root: Path, policy: DecodePolicy) -> bytes:
    """Return the bytes of a scanned file.

    Raises:
        ImageError: its name is no UTF-8, a link leads out of `root`, it is too large, or it cannot be read.
    """
    if not is_utf8(file.path):
        raise ImageError(Reason.BAD_NAME, f"The file name is not UTF-8: {os.fsencode(file.path)!r}.")
    try:
        # Asked for its size first: that reports links in a circle as an OSError, which `resolve` does not.
        size = file.location.stat().st_size
        if not file.location.resolve().is_relative_to(root.resolve()):
            raise ImageError(Reason.OUTSIDE_SOURCE, "The link leads out of the collection.")
        _check_bytes(size, policy)
        data = file.location.read_bytes()
    except OSError as error:
        raise ImageError(Reason.UNREADABLE, f"The file cannot be read: {error.strerror}.") from error
    _check_bytes(len(data), policy)
    return data


def is_utf8(path: str) -> bool:
    """Tell whether a path can be written down: in JSON, in the catalogue, in an answer."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def content_hash(data: bytes) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, policy: DecodePolicy, admit: Callable[[int], object] = lambda _: None) -> Decoded:
    """Decode a picture file into upright 8-bit RGB.

    Args:
        data: the file.
        policy: its limits.
        admit: is called with the number of pixels that will be decoded, before they are; may wait until they can be.

    Raises:
        ImageError: the bytes are no picture of an allowed format, break a limit of `policy`, or are damaged.
    """
    _check_bytes(len(data), policy)
    try:
        with Image.open(_File(data), formats=FORMATS) as image:
            width, height = image.size
            if image.format in _JPEG:
                _check_scans(image, data, policy)
            whole = width * height <= policy.max_pixels
            if not whole:
                _reduce(image, policy)
            admit(image.width * image.height)
            stored = _plain_jpeg(image, data) if whole else None
            if stored is None:
                image.load()
                stored = _in_strips(image)
            orientation = _orientation(image)
            if orientation in _SWAPPING:
                width, height = height, width
            return Decoded(_upright(stored, orientation), _media_type(image), width, height)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(Reason.NOT_AN_IMAGE, f"This is no picture; known are {', '.join(FORMATS)}.") from error
    except MemoryError as error:
        raise ImageError(Reason.TOO_MUCH_MEMORY, "The picture takes more memory than there is.") from error
    except Exception as error:
        # Pillow's decoders raise whatever a damaged file makes them trip over: OSError, SyntaxError, ValueError,
        # struct.error, OverflowError and more. Each of them is this one picture's fault.
        raise ImageError(Reason.UNREADABLE, f"The picture is damaged: {str(error) or type(error).__name__}.") from error


def thumbnail(image: Image.Image) -> bytes:
    """Return an RGB picture as a JPEG that fits a square of `THUMBNAIL_SIDE` pixels.

    What `preprocessing.shrink` made is only encoded; of a whole picture, Pillow first makes a small one, which takes
    eight times as long as `shrink`.
    """
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def perceptual_hash(image: Image.Image) -> int:
    """Return 64 bits (0 to 2**64 - 1) of which near-duplicates share most: count the bits in which two differ.

    The signs of the 8 x 8 lowest frequencies of the picture's brightness, against their median
    (https://www.hackerfactor.com/blog/index.php?/archives/432-Looks-Like-It.html). It looks at 32 x 32 pixels, so give
    it a small picture.
    """
    import imagehash  # noqa: PLC0415 - imports SciPy, which takes a second; the service hashes nothing

    return int(str(imagehash.phash(image)), 16)


def _media_type(image: Image.Image) -> str:
    # An MPO is opened as a JPEG, and every reader shows the first.
    return MEDIA_TYPES["JPEG" if image.format == "MPO" else str(image.format)]


def _check_bytes(size: int, policy: DecodePolicy) -> None:
    if size == 0:
        raise ImageError(Reason.EMPTY, "The file is empty.")
    if size > policy.max_bytes:
        raise ImageError(Reason.TOO_MANY_BYTES, f"The file has {size:,} bytes; the limit is {policy.max_bytes:,}.")


def _check_scans(image: Image.Image, data: bytes, policy: DecodePolicy) -> None:
    """Refuse a JPEG that takes long or much memory for its size.

    Each scan goes through the whole picture, so that a small file of many takes minutes. For several, libjpeg keeps
    all coefficients, 6 bytes a pixel, whatever the size that it is then reduced to.
    """
    whole, scans, most = image.width * image.height, _scans(data), policy.max_pixels * 3 // 2
    if "progressive" not in image.info and scans and scans[0] == len(image.getbands()):
        return
    if whole > most:
        detail = f"The JPEG has {image.width} x {image.height} pixels in several scans; the limit is {most:,} in all."
        raise ImageError(Reason.TOO_MANY_PIXELS, detail)
    if len(scans) * whole > _MOST_PASSES * policy.max_pixels:
        raise ImageError(Reason.UNREADABLE, f"The JPEG has {len(scans)} scans: too many for {whole:,} pixels.")


def _scans(data: bytes) -> list[int]:
    """Return of how many components each scan of a JPEG is."""
    scans: list[int] = []
    at = 2
    for _ in range(_MOST_SEGMENTS):
        marker = _SEGMENT.search(data, at)
        if marker is None or marker[1] == _END:
            return scans
        at = marker.end()
        if marker[1] == _SCAN:
            scans.append(int.from_bytes(data[at + 2 : at + 3]))
        at += int.from_bytes(data[at : at + 2])
    raise ImageError(Reason.UNREADABLE, "The JPEG is made of too many parts.")


def _reduce(image: Image.Image, policy: DecodePolicy) -> None:
    """Let a large JPEG be decoded at reduced size; refuse what is still over the limit."""
    width, height = image.size
    if image.format in _JPEG:
        for reduction in _JPEG_REDUCTIONS:
            # The decoder rounds up.
            if -(-width // reduction) * -(-height // reduction) <= policy.max_pixels:
                image.draft("RGB", (max(width // reduction, 1), max(height // reduction, 1)))
                break
    if image.width * image.height > policy.max_pixels:
        detail = f"The picture has {width} x {height} pixels; the limit is {policy.max_pixels:,} in all."
        raise ImageError(Reason.TOO_MANY_PIXELS, detail)


def _plain_jpeg(image: Image.Image, data: bytes) -> RGB | None:
    """Return the pixels of an opened JPEG as stored; None where Pillow shall decode it, or refuse it."""
    if image.format != "JPEG" or image.mode not in {"RGB", "L"}:
        return None
    try:
        # Pillow's header was held against the limits: a file whose headers contradict each other must not pass it.
        if simplejpeg.decode_jpeg_header(data)[:2] != (image.height, image.width):
            return None
        # It also refuses what libjpeg only warns of, such as stray bytes; which of that is a picture, Pillow says.
        stored: RGB = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None
    return stored


def _upright(stored: RGB, orientation: int) -> RGB:
    """Turn a picture; numpy moves pixels as wholes in half the time that it takes for three bytes each."""
    if orientation not in _TURNS:
        return stored
    turned = np.ascontiguousarray(_TURNS[orientation](stored.view("V3")[..., 0]))
    return turned.view(np.uint8).reshape(*turned.shape, 3)


def _may_be_file(location: Path) -> bool:
    """Tell regular files from pipes and links to nothing; what may not be looked at is left for `read` to report."""
    try:
        return location.is_file()
    except PermissionError:
        return True
    except OSError:
        return False


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation. `ImageOps.exif_transpose` would fail where it cannot write all EXIF anew."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - damaged EXIF, in any of Pillow's ways, costs the orientation, not the picture
        return 1


def _in_strips(image: Image.Image) -> RGB:
    """Convert a loaded picture, a strip at a time: Pillow takes 4 bytes a pixel, and as many again for every step."""
    rows = max(_STRIP // image.width, 1)
    strips = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]
    deep = image.mode.startswith("I") or image.mode == "F"
    white = _white(image, strips) if deep else None
    stored = np.empty((image.height, image.width, 3), np.uint8)
    for box in strips:
        strip = image.crop(box)
        stored[box[1] : box[3]] = np.asarray(_to_rgb(strip)) if white is None else _grey(strip, white)[..., np.newaxis]
    return stored


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any 8-bit mode to RGB, transparency over white."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(Reason.UNSUPPORTED_MODE, f"Pictures of mode {image.mode} cannot be read as RGB.") from error


def _white(image: Image.Image, strips: list[tuple[int, int, int, int]]) -> float:
    """Return the value that is white: 16-bit grey has a range; 32-bit the smallest usual one that holds its values."""
    if image.mode.startswith("I;16"):
        return 65_535.0
    top = max(float(_levels(image.crop(box)).max()) for box in strips)
    return next((limit for limit in (1.0, 255.0, 65_535.0) if top <= limit), top)


def _levels(image: Image.Image) -> NDArray[np.float32]:
    values = np.array(image, dtype=np.float32)
    return np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def _grey(image: Image.Image, white: float) -> NDArray[np.uint8]:
    """Scale grey of more than 8 bits to them."""
    values = _levels(image)
    clear = image.info.get("transparency")
    if image.mode.startswith("I;16") and isinstance(clear, int):
        values[values == clear] = white
    values *= np.float32(255.0 / white)
    return np.clip(values, 0, 255, out=values).astype(np.uint8)
