"""Pictures: what is found in a folder, what is decoded and how, and why a picture is refused."""

import hashlib
import io
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from indexer.errors import ImageError, Reason
from indexer.images import (
    FORMATS,
    DecodePolicy,
    ImageFile,
    content_hash,
    decode,
    perceptual_hash,
    read,
    scan,
    thumbnail,
)
from tests.pictures import EXIF_LAYOUTS, FITTING_256, POLICY, encode, orientation, png, quarters

# As the product does for itself; pytest puts its own filters first.

LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {}, "GIF": {}}
LOSSY: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}


def pixels(data: bytes, policy: DecodePolicy = POLICY) -> NDArray[np.int64]:
    """Decode a picture into an array of shape (height, width, 3)."""
    image = decode(data, policy).image
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int64)


def refusal(data: bytes, policy: DecodePolicy = POLICY) -> Reason:
    """Have a picture refused with a sentence, and return the reason."""
    with pytest.raises(ImageError, match=r"^[A-Z].*\.$") as refused:
        decode(data, policy)
    return refused.value.reason


# Formats


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_lossless_format_decodes_to_the_very_pixels(kind: str) -> None:
    assert (pixels(encode(quarters(), kind, **LOSSLESS[kind])) == quarters()).all()


@pytest.mark.parametrize("kind", LOSSY)
def test_a_lossy_format_decodes_to_nearly_the_same_pixels(kind: str) -> None:
    assert np.abs(pixels(encode(quarters(), kind, **LOSSY[kind])) - quarters()).mean() < 3


def test_every_allowed_format_is_tested() -> None:
    assert {*LOSSLESS, *LOSSY} == set(FORMATS)


@pytest.mark.parametrize(
    ("kind", "media_type"),
    [
        ("JPEG", "image/jpeg"),
        ("MPO", "image/jpeg"),
        ("PNG", "image/png"),
        ("WEBP", "image/webp"),
        ("GIF", "image/gif"),
        ("BMP", "image/bmp"),
        ("TIFF", "image/tiff"),
        ("AVIF", "image/avif"),
    ],
)
def test_each_format_has_its_media_type(kind: str, media_type: str) -> None:
    decoded = decode(encode(quarters(), kind), POLICY)
    assert (decoded.media_type, decoded.width, decoded.height) == (media_type, 30, 20)


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PCX", "JPEG2000"])
def test_other_formats_of_pillow_are_refused(kind: str) -> None:
    assert refusal(encode(quarters(), kind)) is Reason.NOT_AN_IMAGE


def test_the_content_hash_is_sha_256() -> None:
    assert content_hash(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert content_hash(b"") == hashlib.sha256().hexdigest()


# Depths and modes


def test_half_grey_of_16_bit_png_is_half_grey() -> None:
    data = png((2, 1), 16, 0, b"\0" + struct.pack(">HH", 32_768, 65_535))
    assert pixels(data)[0, 0].tolist() in ([127] * 3, [128] * 3)
    assert pixels(data)[0, 1].tolist() == [255] * 3


def test_a_dark_16_bit_png_stays_dark() -> None:
    data = png((2, 1), 16, 0, b"\0" + struct.pack(">HH", 300, 600))
    assert pixels(data).max() == 2


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_16_bit_grey_tiff_is_scaled_by_its_range_in_both_byte_orders(byte_order: str) -> None:
    picture = np.array([[0, 16_384, 32_768, 65_535]], f"{byte_order}u2")
    assert np.abs(pixels(encode(picture, "TIFF"))[0, :, 0] - [0, 64, 128, 255]).max() <= 1


def test_16_bit_rgb_png_keeps_its_high_bytes() -> None:
    data = png((1, 1), 16, 2, b"\0" + struct.pack(">HHH", 0xC8FF, 0x1402, 0x0A00))
    assert np.abs(pixels(data)[0, 0] - [0xC8, 0x14, 0x0A]).max() <= 1


def test_16_bit_grey_that_png_marks_transparent_is_white() -> None:
    data = png((2, 1), 16, 0, b"\0" + struct.pack(">HH", 1_000, 32_768), tRNS=struct.pack(">H", 1_000))
    assert pixels(data)[0, 0].tolist() == [255] * 3
    assert abs(pixels(data)[0, 1, 0] - 128) <= 1


def test_float_tiff_from_0_to_1_spans_black_to_white() -> None:
    picture = np.array([[0.0, 0.5, 1.0, -3.0, np.nan]], np.float32)
    assert np.abs(pixels(encode(picture, "TIFF"))[0, :, 0] - [0, 128, 255, 0, 0]).max() <= 1


def test_a_tall_float_tiff_is_scaled_by_its_brightest_pixel_wherever_it_is() -> None:
    picture = np.full((3_000, 1_000), 2_000.0, np.float32)  # of several strips
    picture[2_900, 3] = 50_000.0
    greys = decode(encode(picture, "TIFF", compression="tiff_lzw"), DecodePolicy(2**20, 3_000_000)).rgb[..., 0]
    assert abs(int(greys[2_900, 3]) - 195) <= 1
    assert (greys[0, 0], np.unique(greys).size) == (7, 2)


def test_float_tiff_of_any_range_keeps_its_order() -> None:
    picture = np.array([[0.0, 1e30, 2e30, 3e38]], np.float32)
    greys = pixels(encode(picture, "TIFF"))[0, :, 0]
    assert greys[0] == 0
    assert greys[-1] == 255
    assert (np.diff(greys) >= 0).all()


@pytest.mark.parametrize("white", [255, 65_535, 140_000])
def test_32_bit_grey_tiff_is_scaled_by_the_smallest_usual_range(white: int) -> None:
    picture = np.array([[0, white // 2, white]], np.int32)
    assert np.abs(pixels(encode(picture, "TIFF"))[0, :, 0] - [0, 127, 255]).max() <= 1


def test_one_bit_png_is_black_and_white() -> None:
    assert pixels(png((2, 1), 1, 0, b"\0\x40"))[0].tolist() == [[0] * 3, [255] * 3]


def test_grey_jpeg_becomes_rgb() -> None:
    assert np.abs(pixels(encode(np.full((8, 8), 90, np.uint8), "JPEG")) - 90).max() <= 1


def test_cmyk_jpeg_shows_its_colours() -> None:
    data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(pixels(data) - [255, 0, 0]).max() <= 3


# Transparency


@pytest.mark.parametrize(
    ("mode", "clear", "half"), [("RGBA", (255, 0, 0, 0), (255, 0, 0, 128)), ("LA", (0, 0), (0, 128))]
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_lie_over_white(kind: str, mode: str, clear: tuple[int, ...], half: tuple[int, ...]) -> None:
    image = Image.new(mode, (2, 1), clear)
    image.putpixel((1, 0), half)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = pixels(encode(image, kind, **options))[0]
    assert found[0].tolist() == [255, 255, 255]
    assert np.abs(found[1] - ([255, 127, 127] if mode == "RGBA" else [127] * 3)).max() <= 1


def test_a_palette_with_transparency_lies_over_white() -> None:
    data = png((3, 1), 8, 3, b"\0\0\1\2", PLTE=bytes([9, 8, 7, 0, 0, 0, 1, 2, 3]), tRNS=bytes([0, 128]))
    assert np.abs(pixels(data)[0] - [[255] * 3, [127] * 3, [1, 2, 3]]).max() <= 1


def test_the_colour_that_png_marks_transparent_is_white() -> None:
    data = png((2, 1), 8, 2, bytes([0, 9, 8, 7, 1, 2, 3]), tRNS=struct.pack(">HHH", 9, 8, 7))
    assert pixels(data)[0].tolist() == [[255] * 3, [1, 2, 3]]


def test_a_transparent_gif_lies_over_white() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    assert pixels(encode(image, "GIF", transparency=0))[0].tolist() == [[255] * 3, [0, 200, 0]]


# Orientation


@pytest.mark.parametrize("value", EXIF_LAYOUTS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_exif_orientation_comes_out_upright(kind: str, value: int) -> None:
    stored = np.ascontiguousarray(EXIF_LAYOUTS[value](quarters()))
    options = LOSSLESS.get(kind) or LOSSY.get(kind, {})
    data = encode(stored, kind, exif=orientation(value), **options)
    decoded = decode(data, POLICY)
    assert (decoded.width, decoded.height) == decoded.image.size == (30, 20)
    assert np.abs(pixels(data) - quarters()).mean() < 3


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage that is no TIFF",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0",
    ],
    ids=["empty", "no TIFF", "far offset", "many entries", "orientation 99"],
)
def test_damaged_exif_costs_the_orientation_only(exif: bytes) -> None:
    assert np.abs(pixels(encode(quarters(), "JPEG", exif=exif, **LOSSY["JPEG"])) - quarters()).mean() < 3


@pytest.mark.parametrize(
    "entry",
    [(271, 11, 0, 0x08), (270, 13, 2, 0), (34665, 9, 1, -2_023_161_856), (282, 2, 4, 0x7EE69E)],
    ids=["maker of no floats", "description of pointers", "sub-folder before the file", "resolution of text"],
)
def test_damage_elsewhere_in_exif_leaves_the_orientation_its_effect(entry: tuple[int, int, int, int]) -> None:
    entries = sorted([(274, 3, 1, 6), entry])
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + b"".join(struct.pack("<HHIi", *e) for e in entries) + bytes(8)
    data = encode(np.ascontiguousarray(EXIF_LAYOUTS[6](quarters())), "JPEG", exif=exif, **LOSSY["JPEG"])
    assert np.abs(pixels(data) - quarters()).mean() < 3


def test_real_pictures_in_all_orientations_look_the_same(real_data: Path) -> None:
    policy = DecodePolicy(max_bytes=2**26, max_pixels=50_000_000)
    folder = real_data / "bad" / "exif-orientation"
    upright = decode((folder / "Landscape_1.jpg").read_bytes(), policy)
    for value in range(2, 9):
        turned = decode((folder / f"Landscape_{value}.jpg").read_bytes(), policy)
        assert (turned.width, turned.height) == (upright.width, upright.height)
        small = [np.asarray(decoded.image.resize((60, 40))).astype(float) for decoded in (upright, turned)]
        assert np.abs(small[0] - small[1]).mean() < 5, value


# Frames


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_only_the_first_frame_is_seen(kind: str) -> None:
    frames = [Image.new("RGB", (16, 8), colour) for colour in ((200, 20, 30), (20, 200, 30))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.abs(pixels(data) - [200, 20, 30]).max() <= 3


# Refusals


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY),
        (b"<!doctype html><title>404</title>", Reason.NOT_AN_IMAGE),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Reason.NOT_AN_IMAGE),
        (b"\0" * 1_000, Reason.NOT_AN_IMAGE),
        (b"\xff\xd8\xff", Reason.NOT_AN_IMAGE),
        (bytes(2**20 + 1), Reason.TOO_MANY_BYTES),
    ],
    ids=["empty", "HTML", "SVG", "zeros", "JPEG magic only", "many bytes"],
)
def test_what_is_no_picture_is_refused_with_its_reason(data: bytes, reason: Reason) -> None:
    assert refusal(data) is reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_truncated_picture_is_unreadable(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(noise, kind)
    assert refusal(data[: len(data) // 2]) in {Reason.UNREADABLE, Reason.NOT_AN_IMAGE}


def test_a_png_with_a_flipped_byte_is_unreadable() -> None:
    data = bytearray(encode(quarters(), "PNG"))
    data[data.index(b"IDAT") + 10] ^= 0xFF
    assert refusal(bytes(data)) is Reason.UNREADABLE


def test_a_picture_at_each_limit_passes_and_one_beyond_is_refused() -> None:
    data = encode(quarters(30, 20), "PNG")
    assert decode(data, DecodePolicy(len(data), 600)).image.size == (30, 20)
    assert refusal(data, DecodePolicy(len(data) - 1, 600)) is Reason.TOO_MANY_BYTES
    assert refusal(data, DecodePolicy(len(data), 599)) is Reason.TOO_MANY_PIXELS


def test_a_bomb_is_refused_from_its_header_in_no_time_and_no_memory() -> None:
    data = png((20_000, 20_000), 8, 2, bytes(1_000))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    assert refusal(data, DecodePolicy(2**20, 50_000_000)) is Reason.TOO_MANY_PIXELS
    assert time.perf_counter() - start < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB; decoded, it takes 1.2 million


def test_a_refusal_tells_the_size_and_the_limit() -> None:
    with pytest.raises(ImageError, match="20000 x 300 pixels; the limit is 1,000,000"):
        decode(png((20_000, 300), 8, 2, b""), POLICY)


# Large JPEGs


@pytest.mark.parametrize(
    ("size", "limit", "reduced"),
    [
        ((1600, 1200), 480_000, (800, 600)),
        ((1600, 1200), 479_999, (400, 300)),
        ((1600, 1200), 30_000, (200, 150)),
        ((399, 401), 40_000, (100, 101)),
    ],
)
def test_a_jpeg_over_the_limit_is_decoded_at_the_largest_size_within_it(
    size: tuple[int, int], limit: int, reduced: tuple[int, int]
) -> None:
    decoded = decode(encode(quarters(*size), "JPEG"), DecodePolicy(2**20, limit))
    assert decoded.image.size == reduced
    assert (decoded.width, decoded.height) == size


def test_a_reduced_jpeg_still_looks_the_same() -> None:
    data = encode(quarters(1600, 1200), "JPEG")
    assert np.abs(pixels(data, DecodePolicy(2**20, 30_000)) - quarters(200, 150)).mean() < 3


def test_a_jpeg_of_more_than_64_times_the_limit_is_refused() -> None:
    data = encode(quarters(1600, 1200), "JPEG")
    assert refusal(data, DecodePolicy(2**20, 29_999)) is Reason.TOO_MANY_PIXELS


def test_a_line_of_jpeg_over_the_limit_is_refused_for_its_pixels() -> None:
    assert refusal(encode(quarters(2000, 1), "JPEG"), DecodePolicy(2**20, 100)) is Reason.TOO_MANY_PIXELS


@pytest.mark.parametrize("size", [(1600, 1200), (802, 801)])
def test_a_reduced_jpeg_on_its_side_reports_the_upright_size(size: tuple[int, int]) -> None:
    stored = np.ascontiguousarray(EXIF_LAYOUTS[6](quarters(*size)))
    decoded = decode(encode(stored, "JPEG", exif=orientation(6)), DecodePolicy(2**20, 30_000))
    assert (decoded.width, decoded.height) == size
    assert np.abs(np.asarray(decoded.image.resize(size)).astype(int) - quarters(*size)).mean() < 5


# JPEGs by two decoders


def by_pillow(data: bytes) -> NDArray[np.int64]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": 0},
        {"subsampling": 1},
        {"progressive": True},
        {"quality": 5},
        {"restart_marker_rows": 1},
        {"keep_rgb": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(1, 1), (17, 9), (64, 48), (131, 77)])
def test_a_jpeg_is_decoded_to_what_pillow_makes_of_it(size: tuple[int, int], options: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    for picture in (noise, quarters(*size), noise[:, :, 0].copy()):
        data = encode(picture, "JPEG", **(options if picture.ndim == 3 else {}))
        assert np.abs(pixels(data) - by_pillow(data)).max() <= 1


def test_stray_bytes_in_a_jpeg_are_pillows_to_forgive() -> None:
    data = encode(quarters(), "JPEG")
    stray = data[:-2] + b"stray" + data[-2:]
    assert np.abs(pixels(stray) - by_pillow(stray)).max() == 0


def test_a_jpeg_whose_headers_contradict_each_other_is_held_to_the_limit() -> None:
    data = encode(np.zeros((16, 16, 3), np.uint8), "JPEG")
    header = data.index(b"\xff\xc0")
    length = 2 + int.from_bytes(data[header + 2 : header + 4])
    large = bytearray(data[header : header + length])
    large[5:9] = struct.pack(">HH", 60_000, 60_000)
    policy = DecodePolicy(2**20, 1_000)
    for both in (bytes(large) + data[header : header + length], data[header : header + length] + bytes(large)):
        assert refusal(data[:header] + both + data[header + length :], policy) in set(Reason)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 4), keep=st.floats(0.3, 1), grey=st.booleans())
def test_a_damaged_jpeg_is_refused_exactly_where_pillow_refuses_it(
    seed: int, flips: int, keep: float, grey: bool
) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (24, 32) if grey else (24, 32, 3), np.uint8)
    damaged = bytearray(encode(noise, "JPEG", exif=orientation(1)))
    for _ in range(flips):
        damaged[int(rng.integers(2, len(damaged)))] ^= int(rng.integers(1, 256))
    data = bytes(damaged[: int(len(damaged) * keep) + 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                large = image.width * image.height > POLICY.max_pixels
                expected = None if large else np.asarray(image.convert("RGB")).astype(np.int64)
        except Exception:  # noqa: BLE001 - Pillow raises anything
            expected = None
    if expected is None:
        assert refusal(data) in set(Reason)
    else:
        decoded = decode(data, POLICY)
        if decoded.rgb.shape == expected.shape:  # damage can change the orientation
            assert np.abs(decoded.rgb.astype(np.int64) - expected).max() <= 1


def test_a_picture_for_which_there_is_no_memory_says_so() -> None:
    child = (
        "import resource, sys\n"
        "from indexer.errors import ImageError\n"
        "from indexer.images import DecodePolicy, decode\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, used + 2**25))\n"
        "try:\n"
        "    decode(sys.stdin.buffer.read(), DecodePolicy(2**26, 10**9))\n"
        "except ImageError as error:\n"
        "    print(error.reason)\n"
    )
    for kind in ("JPEG", "PNG"):
        data = encode(Image.new("RGB", (8_000, 6_000)), kind)
        done = subprocess.run([sys.executable, "-c", child], input=data, capture_output=True, check=True)
        assert done.stdout.decode().strip() == Reason.TOO_MUCH_MEMORY, kind


# Odd but good


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_points_and_lines_are_pictures(kind: str, size: tuple[int, int]) -> None:
    decoded = decode(encode(Image.new("RGB", size, (9, 9, 9)), kind), POLICY)
    assert decoded.image.size == (decoded.width, decoded.height) == size


@pytest.mark.parametrize("tail", [b"<script>alert(1)</script>", b"%PDF-1.7", b"PK\x03\x04", bytes(5_000)])
def test_bytes_after_the_end_of_a_picture_change_nothing(tail: bytes) -> None:
    assert (pixels(encode(quarters(), "PNG") + tail) == quarters()).all()


def test_real_bad_files_become_rgb_or_an_image_error(real_data: Path) -> None:
    policy = DecodePolicy(max_bytes=2**26, max_pixels=50_000_000)
    outcomes = {"decoded": 0, "refused": 0}
    for file in scan(real_data / "bad"):
        try:
            assert decode(read(file, real_data / "bad", policy), policy).image.mode == "RGB", file.path
            outcomes["decoded"] += 1
        except ImageError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0


# Thumbnails


@pytest.mark.parametrize(("size", "small"), FITTING_256)
def test_a_thumbnail_fits_256_and_keeps_the_aspect(size: tuple[int, int], small: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(thumbnail(Image.new("RGB", size, "navy")))) as image:
        assert (image.format, image.size) == ("JPEG", small)


def test_a_thumbnail_shows_the_picture_and_leaves_it_alone() -> None:
    original = Image.fromarray(quarters(600, 400))
    shown = pixels(thumbnail(original))
    assert np.abs(shown - quarters(256, 171)).mean() < 5
    assert (np.asarray(original) == quarters(600, 400)).all()


# Perceptual hashes


def test_the_perceptual_hash_is_the_signs_of_the_lowest_frequencies() -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(np.kron(rng.integers(0, 256, (6, 7, 3), np.uint8), np.ones((20, 20, 1), np.uint8)))
    grey = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS)).astype(np.float64)
    place, frequency = np.arange(32) + 0.5, np.arange(8)[:, None]
    waves = np.cos(np.pi / 32 * frequency * place)
    low = waves @ grey @ waves.T
    bits = "".join(str(int(bit)) for bit in (low > np.median(low)).ravel())
    assert perceptual_hash(picture) == int(bits, 2)


def test_perceptual_hashes_of_all_colours_fit_64_bits_and_no_sign() -> None:
    for colour in ("black", "white", "red"):
        assert 0 <= perceptual_hash(Image.new("RGB", (1, 1), colour)) < 2**64


def test_the_same_picture_smaller_brighter_and_as_a_jpeg_has_nearly_the_same_hash() -> None:
    clouds = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    original = Image.fromarray(clouds).resize((200, 150), Image.Resampling.BICUBIC)
    smaller = original.resize((101, 77))
    jpeg = decode(encode(original.point(lambda value: min(255, int(value * 1.1))), "JPEG", quality=60), POLICY).image
    other = Image.fromarray(np.random.default_rng(3).integers(0, 256, (150, 200, 3), np.uint8))
    hashes = [perceptual_hash(image) for image in (original, smaller, jpeg, other)]
    assert (hashes[0] ^ hashes[1]).bit_count() <= 6
    assert (hashes[0] ^ hashes[2]).bit_count() <= 6
    assert (hashes[0] ^ hashes[3]).bit_count() > 16


# Folders


def paths(root: Path) -> list[str]:
    return [file.path for file in scan(root)]


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"content of " + name.encode())


def test_a_scan_lists_files_folder_by_folder_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path, "b/2.png", "b/10.png", "a/z/1.gif", "a/x.jpg", "Z.png", "c.txt")
    assert paths(tmp_path) == ["Z.png", "c.txt", "a/x.jpg", "a/z/1.gif", "b/10.png", "b/2.png"]


def test_a_scan_tells_where_each_file_is(tmp_path: Path) -> None:
    write(tmp_path, "a/x.png")
    assert list(scan(tmp_path)) == [ImageFile("a/x.png", tmp_path / "a" / "x.png")]


def test_a_scan_leaves_out_hidden_files_and_folders(tmp_path: Path) -> None:
    write(tmp_path, ".hidden.png", ".git/x.png", "a/.b/c.png", "a/seen.png")
    assert paths(tmp_path) == ["a/seen.png"]


def test_a_scan_follows_links_to_files_but_not_to_folders(tmp_path: Path) -> None:
    write(tmp_path, "real/x.png")
    (tmp_path / "again").symlink_to("real")
    (tmp_path / "real" / "up").symlink_to("..")
    (tmp_path / "link.png").symlink_to("real/x.png")
    assert paths(tmp_path) == ["link.png", "real/x.png"]


def test_a_scan_leaves_out_links_that_lead_nowhere(tmp_path: Path) -> None:
    write(tmp_path, "x.png")
    (tmp_path / "dangling.png").symlink_to("gone.png")
    (tmp_path / "loop.png").symlink_to("pool.png")
    (tmp_path / "pool.png").symlink_to("loop.png")
    (tmp_path / "long.png").symlink_to("n" * 300)
    assert paths(tmp_path) == ["x.png"]


def test_a_scan_leaves_out_pipes(tmp_path: Path) -> None:
    write(tmp_path, "x.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert paths(tmp_path) == ["x.png"]


def test_a_scan_of_nothing_is_empty(tmp_path: Path) -> None:
    assert paths(tmp_path) == []


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, "x.png")
    assert [read(file, tmp_path, POLICY) for file in scan(tmp_path)] == [b"content of x.png"]


def test_a_link_within_the_collection_is_read(tmp_path: Path) -> None:
    write(tmp_path, "a/x.png")
    (tmp_path / "link.png").symlink_to("a/x.png")
    assert [read(file, tmp_path, POLICY) for file in scan(tmp_path)] == [b"content of a/x.png"] * 2


def test_a_collection_that_is_itself_behind_a_link_is_read(tmp_path: Path) -> None:
    write(tmp_path, "real/x.png")
    (tmp_path / "link").symlink_to("real")
    assert [read(file, tmp_path / "link", POLICY) for file in scan(tmp_path / "link")] == [b"content of real/x.png"]


def unread(file: ImageFile, root: Path, policy: DecodePolicy = POLICY) -> Reason:
    """Have a file refused with a sentence, and return the reason."""
    with pytest.raises(ImageError, match=r"^[A-Z].*\.$") as refused:
        read(file, root, policy)
    return refused.value.reason


def test_a_name_that_is_no_utf_8_is_found_and_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png")).write_bytes(b"x")
    (file,) = scan(tmp_path)
    assert unread(file, tmp_path) is Reason.BAD_NAME


def test_a_link_out_of_the_collection_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "secret.png", "inside/x.png")
    (tmp_path / "inside" / "link.png").symlink_to("../secret.png")
    file = next(scan(tmp_path / "inside"))
    assert file.path == "link.png"
    assert unread(file, tmp_path / "inside") is Reason.OUTSIDE_SOURCE


def test_an_empty_or_too_large_file_is_refused_unread(tmp_path: Path) -> None:
    write(tmp_path, "large.png")
    (tmp_path / "empty.png").touch()
    empty, large = scan(tmp_path)
    assert unread(empty, tmp_path) is Reason.EMPTY
    assert unread(large, tmp_path, DecodePolicy(max_bytes=19, max_pixels=1)) is Reason.TOO_MANY_BYTES


def test_a_file_that_is_gone_since_the_scan_is_unreadable(tmp_path: Path) -> None:
    write(tmp_path, "x.png")
    (file,) = scan(tmp_path)
    file.location.unlink()
    assert unread(file, tmp_path) is Reason.UNREADABLE


def test_a_file_that_became_a_link_loop_since_the_scan_is_unreadable(tmp_path: Path) -> None:
    write(tmp_path, "x.png")
    (file,) = scan(tmp_path)
    file.location.unlink()
    file.location.symlink_to("x.png")
    assert unread(file, tmp_path) is Reason.UNREADABLE


@pytest.fixture
def common() -> Iterator[Path]:
    """Make a folder that every user may look into; pytest's own are for its user alone."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def powerless() -> Iterator[None]:
    """Lay down the right of root to read everything, if that is who runs the tests."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_cannot_be_listed_is_reported_when_read(common: Path) -> None:
    write(common, "a/x.png", "shut/y.png")
    (common / "shut").chmod(0o000)
    try:
        with powerless():
            files = list(scan(common))
            assert [file.path for file in files] == ["a/x.png", "shut"]
            with pytest.raises(ImageError, match="Permission denied") as refused:
                read(files[1], common, POLICY)
    finally:
        (common / "shut").chmod(0o755)
    assert refused.value.reason is Reason.UNREADABLE


def test_files_of_a_folder_that_may_only_be_listed_are_reported_when_read(common: Path) -> None:
    write(common, "a/x.png", "shut/y.png")
    (common / "shut").chmod(0o444)
    try:
        with powerless():
            files = list(scan(common))
            assert [file.path for file in files] == ["a/x.png", "shut/y.png"]
            assert unread(files[1], common) is Reason.UNREADABLE
    finally:
        (common / "shut").chmod(0o755)


def test_a_file_that_may_not_be_read_is_unreadable(common: Path) -> None:
    write(common, "x.png")
    (common / "x.png").chmod(0o000)
    with powerless():
        (file,) = scan(common)
        assert unread(file, common) is Reason.UNREADABLE
