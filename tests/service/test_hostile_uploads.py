"""Pictures made to do harm, or merely unusual: uploaded, they are answered or refused, in bounded memory (R8)."""

import re
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw

from indexer.encoder import DEMO, Encoder, EncoderName, load_encoder
from indexer.errors import ImageError, Reason
from indexer.images import DecodePolicy, decode
from service.app import create_app
from service.settings import ServiceSettings
from tests.pictures import EXIF_LAYOUTS, encode, orientation, png, quarters
from tests.trust.figures import noted, sized

SEED = 8
LIMITS = DecodePolicy(max_bytes=20 * 2**20, max_pixels=50_000_000)
ALLOWED = {200, 400, 413, 415}
MOST_MEMORY = 512 * 2**20


def drawn(width: int = 320, height: int = 240) -> Image.Image:
    """Draw a picture of few colours, which looks different from every side."""
    picture = Image.new("RGB", (width, height), (240, 235, 225))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((20, 30, 150, 160), fill=(200, 30, 40))
    draw.rectangle((180, 20, 300, 90), fill=(30, 60, 190))
    draw.polygon([(160, 230), (230, 120), (300, 230)], fill=(40, 150, 60))
    return picture


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunks(*chunks: bytes) -> bytes:
    """Put chunks behind the header of a good PNG."""
    good = encode(quarters(), "PNG")
    return good[:33] + b"".join(chunks) + good[33:]


def of_scans(copies: int, size: tuple[int, int]) -> bytes:
    """Repeat the last scan of a progressive JPEG."""
    good = encode(Image.new("L", size, 128), "JPEG", progressive=True)
    last = [match.start() for match in re.finditer(b"\xff\xda", good)][-1]
    return good[:-2] + good[last:-2] * copies + good[-2:]


def claiming(width: int, height: int) -> bytes:
    """Have the header of a small progressive JPEG claim a size."""
    good = encode(quarters(), "JPEG", progressive=True)
    frame = good.index(b"\xff\xc2") + 5
    return good[:frame] + struct.pack(">HH", height, width) + good[frame + 4 :]


def of_parts(number: int = 1_000_000) -> dict[str, bytes]:
    """Return small pictures between so many parts that say nothing."""
    jpeg, gif = encode(quarters(), "JPEG"), encode(Image.new("L", (8, 8)), "GIF")
    colours = 13 + 3 * (2 << (gif[10] & 7))
    return {
        "JPEG of comments": jpeg[:2] + b"\xff\xfe\x00\x02" * number + jpeg[2:],
        "JPEG of comments at its end": jpeg[:-2] + b"\xff\xfe\x00\x02" * number + jpeg[-2:],
        "PNG of chunks": with_chunks(chunk(b"abCd", b"") * number),
        "PNG of texts": with_chunks(chunk(b"tEXt", b"a\0b") * number),
        "GIF of comments": gif[:colours] + b"\x21\xfe\x01a\0" * number + gif[colours:],
        "GIF of one long comment": gif[:colours] + b"\x21\xfe" + b"\x01a" * number + b"\0" + gif[colours:],
    }


def bombs() -> dict[str, bytes]:
    """Return files that would take much more memory or time than their size suggests."""
    zeros = zlib.compress(bytes(60_000_000), 9)
    large = Image.new("L", (10_000, 10_000), 128)
    return {
        "PNG of 100 MP": encode(large, "PNG"),
        "JPEG of 100 MP": encode(large, "JPEG"),
        "progressive JPEG of 100 MP": encode(large, "JPEG", progressive=True),
        "progressive JPEG that claims 3,120 MP": claiming(65_000, 48_000),
        "JPEG of 1,000 scans of 16 MP": of_scans(1_000, (4_000, 4_000)),
        "PNG of 300 texts of 60 MB": with_chunks(*[chunk(b"zTXt", b"a\0\0" + zeros)] * 300),
        "PNG with a profile of 60 MB": with_chunks(chunk(b"iCCP", b"a\0\0" + zeros)),
    } | of_parts()


@pytest.fixture
def large(settings: ServiceSettings) -> Iterator[TestClient]:
    """Talk to a service with the default limits."""
    defaults = {name: ServiceSettings().model_dump()[name] for name in ("max_body_bytes", "max_pixels")}
    with TestClient(create_app(settings.model_copy(update=defaults)), raise_server_exceptions=False) as client:
        yield client


def uploaded(client: TestClient, data: bytes) -> tuple[int, str]:
    """Upload a picture, and return the status and the code of the answer."""
    response = client.post("/v1/search", files={"file": data}, data={"limit": "1"})
    assert response.status_code in ALLOWED, response.text
    return response.status_code, "" if response.is_success else response.json()["code"]


def memory(what: str) -> int:
    """Return bytes of this process: `VmRSS` now, `VmHWM` at most."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) * 1024


def test_bombs_are_refused_or_made_small_in_bounded_memory_and_the_service_lives_on(large: TestClient) -> None:
    good = encode(quarters(), "PNG")
    assert uploaded(large, good) == (200, "")
    files = bombs()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    base = memory("VmRSS")
    answers = {name: uploaded(large, data) for name, data in files.items()}
    grown = memory("VmHWM") - base
    assert grown <= MOST_MEMORY
    assert answers.pop("JPEG of 100 MP") == (200, "")
    for name in ("PNG of 100 MP", "progressive JPEG of 100 MP", "progressive JPEG that claims 3,120 MP"):
        assert answers.pop(name) == (413, "too_many_pixels"), name
    assert answers == dict.fromkeys(answers, (400, "unreadable"))
    assert uploaded(large, good) == (200, "")
    noted(promise="R8", figure=f"{len(files)} bombs, {grown / 2**20:.0f} MB more memory at most")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (claiming(9_000, 9_000), Reason.TOO_MANY_PIXELS),
        (of_scans(1_000, (2_000, 2_000)), Reason.UNREADABLE),
        (of_scans(100, (3_000, 4_000)), Reason.UNREADABLE),
    ],
)
def test_a_jpeg_of_scans_that_take_too_long_or_too_much_is_refused_before_it_is_decoded(
    data: bytes, reason: Reason
) -> None:
    begun: list[int] = []
    with pytest.raises(ImageError) as error:
        decode(data, LIMITS, begun.append)
    assert (error.value.reason, begun) == (reason, [])


def test_a_small_jpeg_may_have_many_scans_and_a_progressive_one_may_be_large() -> None:
    begun: list[int] = []
    assert decode(of_scans(100, (300, 200)), LIMITS, begun.append).rgb.shape == (200, 300, 3)
    progressive = encode(Image.new("RGB", (3_000, 2_000), "teal"), "JPEG", progressive=True)
    assert decode(progressive, DecodePolicy(2**24, 4_000_000), begun.append).rgb.shape == (1_000, 1_500, 3)
    assert begun == [60_000, 1_500_000]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_a_picture_cut_off_anywhere_is_answered_or_refused(client: TestClient, kind: str) -> None:
    whole = encode(drawn(), kind)
    ends = np.linspace(0, len(whole) - 1, 50).astype(int).tolist()
    answers = Counter(uploaded(client, whole[:end])[0] for end in ends)
    assert answers[200] <= 5, "what is left of a picture is no picture"
    assert uploaded(client, whole) == (200, "")


def mutated(random: np.random.Generator, data: bytes) -> bytes:
    """Change some bytes, more often in the header; cut out, double or swap a part now and then."""
    file = bytearray(data)
    for _ in range(random.integers(1, 9)):
        place = int(random.integers(min(200, len(file)) if random.random() < 0.5 else len(file)))
        file[place] = random.integers(256)
    start, end = sorted(random.integers(0, len(file), 2).tolist())
    match random.integers(6):
        case 0:
            del file[start:end]
        case 1:
            file[start:start] = file[start:end]
        case 2:
            file[start:end] = file[start:end][::-1]
    return bytes(file)


def good_files() -> list[bytes]:
    files = [encode(drawn(64, 48), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")]
    files.append(encode(drawn(64, 48), "JPEG", progressive=True, exif=orientation(6)))
    files.append(encode(drawn(64, 48), "TIFF", compression="tiff_lzw"))
    files.append(encode(drawn(64, 48), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48))]))
    return files


def test_mutated_pictures_are_decoded_or_refused_with_a_reason() -> None:
    random, files, outcomes = np.random.default_rng(SEED), good_files(), Counter[str]()
    number = sized(2_000, 50_000, 1_000_000)
    Path("/proc/self/clear_refs").write_text("5")
    base = memory("VmRSS")
    for each in range(number):
        try:
            picture = decode(mutated(random, files[each % len(files)]), LIMITS)
        except ImageError as error:
            outcomes[error.reason.value] += 1
        else:
            assert picture.rgb.dtype == np.uint8
            assert picture.rgb.size <= 3 * LIMITS.max_pixels
            outcomes["decoded"] += 1
    assert min(outcomes["decoded"], outcomes["unreadable"], outcomes["not_an_image"]) > 0
    assert memory("VmHWM") - base <= MOST_MEMORY
    figure = f"{number:,} mutated files: {dict(outcomes)}, +{(memory('VmHWM') - base) / 2**20:.0f} MB at most"
    noted(promise="R8", figure=figure, seed=SEED)


def test_mutated_pictures_are_answered_or_refused_over_http(client: TestClient) -> None:
    random, files, answers = np.random.default_rng(SEED + 1), good_files(), Counter[int]()
    number = sized(200, 2_000, 20_000)
    for each in range(number):
        answers[uploaded(client, mutated(random, files[each % len(files)]))[0]] += 1
    assert uploaded(client, files[0]) == (200, "")
    noted(promise="R8", figure=f"{number:,} uploads of mutated files: {dict(answers)}", seed=SEED + 1)


# In a process of its own, whose memory holds nothing that could be used again.
DECODED_ALONE = """
import re, sys
from indexer.images import DecodePolicy, decode
from indexer.settings import Settings

memory = lambda what: int(re.search(what + ":\\s*(\\d+)", open("/proc/self/status").read())[1])
data, base = sys.stdin.buffer.read(), memory("VmRSS")
assert decode(data, DecodePolicy.of(Settings())).rgb.shape == (6_250, 8_000, 3)
print((memory("VmHWM") - base) // 1024)
"""


def test_the_largest_picture_of_the_costly_formats_takes_bounded_memory() -> None:
    size, told = (8_000, 6_250), dict[str, int]()
    deep = Image.fromarray(np.full(size[::-1], 30_000, np.uint16))
    files = {
        "transparent PNG": encode(Image.new("RGBA", size, (0, 128, 128, 99)), "PNG", compress_level=1),
        "16-bit PNG": encode(deep, "PNG", compress_level=1),
        "float TIFF": encode(Image.new("F", size, 0.5), "TIFF", compression="tiff_lzw"),
        "AVIF": encode(Image.new("RGB", size, "teal"), "AVIF", speed=10),
        "WebP": encode(Image.new("RGB", size, "teal"), "WEBP", method=0),
    }
    for name, data in files.items():
        done = subprocess.run([sys.executable, "-c", DECODED_ALONE], input=data, capture_output=True, check=True)
        told[name] = int(done.stdout)
    assert min(told.values()) > 150, "a picture of 50 MP alone has 143"
    # Pillow's WebP decoder is that of animations, which keeps two frames of four bytes a pixel, and hands out a third.
    assert told["WebP"] <= 800
    assert max(told[name] for name in files if name != "WebP") <= 512, told
    noted(promise="R8", figure=f"pictures of 50 MP, MiB at most: {told}")


@pytest.mark.parametrize("size", [(1, 65_500), (65_500, 1), (1, 1)])
def test_lines_and_points_are_answered(client: TestClient, size: tuple[int, int]) -> None:
    for kind in ("PNG", "JPEG"):
        assert uploaded(client, encode(Image.new("RGB", size, (9, 9, 9)), kind)) == (200, "")


@pytest.mark.parametrize("head", [b"%PDF-1.7\n", b"<svg>", b"PK\x03\x04", b"GIF89a", b"#!/bin/sh\n", b"\0" * 16])
def test_what_begins_as_something_else_is_no_picture(client: TestClient, head: bytes) -> None:
    assert uploaded(client, head + encode(quarters(), "PNG")) == (415, "not_an_image")


# Unusual encodings of one picture mean what it means.


@pytest.fixture(scope="module")
def demo_encoder() -> Encoder:
    return load_encoder(EncoderName(model=DEMO), device="cpu", threads=1)


def lossless(picture: Image.Image) -> dict[str, bytes]:
    """Encode a picture of up to 255 colours in unusual ways that keep its pixels."""
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    deep = (pixels.astype(">u2") * 257).reshape(height, -1).view(np.uint8)
    rows = np.hstack([np.zeros((height, 1), np.uint8), deep])
    palette = picture.quantize(255)
    files = {
        "PNG of 16 bits": png((width, height), 16, 2, rows.tobytes()),
        "PNG of a palette": encode(palette, "PNG"),
        "PNG of a palette with transparency": encode(palette, "PNG", transparency=255),
        "PNG, opaque": encode(picture.convert("RGBA"), "PNG"),
        "GIF": encode(palette, "GIF"),
        "GIF of frames": encode(palette, "GIF", save_all=True, append_images=[Image.new("P", picture.size)]),
        "WebP": encode(picture, "WEBP", lossless=True),
        "WebP of frames": encode(
            picture, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", picture.size)]
        ),
        "TIFF": encode(picture, "TIFF", compression="tiff_lzw"),
        "BMP": encode(picture, "BMP"),
    }
    for value, layout in EXIF_LAYOUTS.items():
        files[f"PNG with orientation {value}"] = encode(
            np.ascontiguousarray(layout(pixels)), "PNG", exif=orientation(value)
        )
    return files


def lossy(picture: Image.Image) -> dict[str, bytes]:
    """Encode a picture in unusual ways that keep nearly what it looks like."""
    files = {
        "JPEG": encode(picture, "JPEG", quality=90),
        "progressive JPEG": encode(picture, "JPEG", quality=90, progressive=True),
        "CMYK JPEG": encode(picture.convert("CMYK"), "JPEG", quality=90),
        "CMYK TIFF": encode(picture.convert("CMYK"), "TIFF"),
        "AVIF": encode(picture, "AVIF", quality=80),
    }
    for value, layout in EXIF_LAYOUTS.items():
        stored = np.ascontiguousarray(layout(np.asarray(picture)))
        files[f"JPEG with orientation {value}"] = encode(stored, "JPEG", quality=90, exif=orientation(value))
    return files


def grey(picture: Image.Image) -> dict[str, bytes]:
    """Encode the brightness of a picture in ways that keep it."""
    plain = np.asarray(picture.convert("L"))
    return {
        "PNG of grey": encode(plain, "PNG"),
        "PNG of grey and alpha": encode(Image.fromarray(plain).convert("LA"), "PNG"),
        "PNG of 16 bits of grey": encode(plain.astype(np.uint16) * 257, "PNG"),
        "TIFF of 16 bits of grey": encode(plain.astype(np.uint16) * 257, "TIFF"),
        "TIFF of floats": encode(plain.astype(np.float32) / 255, "TIFF"),
        "BMP of grey": encode(plain, "BMP"),
    }


def cosines(encoder: Encoder, reference: Image.Image, files: dict[str, bytes]) -> dict[str, float]:
    """Return how alike what each file embeds to is to what a picture does."""
    pictures = [decode(data, LIMITS).rgb for data in files.values()]
    pixels = [encoder.preprocess(picture) for picture in (np.asarray(reference.convert("RGB")), *pictures)]
    first, *others = encoder.encode_images(pixels)
    return {name: float(first @ other) for name, other in zip(files, others, strict=True)}


def photographs(real_data: Path) -> list[Image.Image]:
    """Open six photographs, spread evenly."""
    files = sorted((real_data / "photos").rglob("*.jpg"))
    return [Image.open(file).convert("RGB") for file in files[:: len(files) // 5]]


def test_an_unusual_file_embeds_like_the_plain_picture(demo_encoder: Encoder) -> None:
    exact, near = lowest(demo_encoder, drawn())
    noted(promise="R8", figure=f"unusual files of a drawing: cosine {exact:.4f} lossless, {near:.4f} lossy at least")


def test_unusual_files_of_photographs_embed_like_the_plain_ones(demo_encoder: Encoder, real_data: Path) -> None:
    pictures = [photograph.quantize(255).convert("RGB") for photograph in photographs(real_data)]
    exact, near = map(min, zip(*(lowest(demo_encoder, picture) for picture in pictures), strict=True))
    figure = f"unusual files of {len(pictures)} photographs: cosine {exact:.4f} lossless, {near:.4f} lossy at least"
    noted(promise="R8", figure=figure)


def lowest(encoder: Encoder, picture: Image.Image) -> tuple[float, float]:
    """Have all files of a picture embed like it, and return how alike the least alike are: lossless and lossy ones."""
    exact = cosines(encoder, picture, lossless(picture)) | cosines(encoder, picture.convert("L"), grey(picture))
    near = cosines(encoder, picture, lossy(picture))
    assert {name: cosine for name, cosine in exact.items() if cosine < 0.99} == {}
    assert {name: cosine for name, cosine in near.items() if cosine < 0.97} == {}
    return min(exact.values()), min(near.values())


def test_black_and_white_embeds_as_it_looks(demo_encoder: Encoder) -> None:
    picture = drawn().convert("1")
    found = cosines(demo_encoder, picture, {"PNG": encode(picture, "PNG"), "TIFF": encode(picture, "TIFF")})
    assert min(found.values()) >= 0.99
