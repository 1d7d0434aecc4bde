"""Results in a terminal: as a table, and as pictures where the terminal can show any. A door to rich."""

import base64
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, auto

import numpy as np
from PIL import Image, ImageOps
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from service.schemas.classify import ClassifyResponse
from service.schemas.items import Explanation, Result

# Of a picture, in characters, which are twice as high as wide.
_COLUMNS, _ROWS = 20, 10
# Of a picture where the terminal draws it, in pixels.
_SIDE = 256
# A line of a table that goes to a file or a pipe is never broken.
_NO_END = 10_000
_KITTY_CHUNK = 4_096


class Protocol(Enum):
    """How a terminal shows pictures."""

    KITTY = auto()
    """https://sw.kovidgoyal.net/kitty/graphics-protocol/."""
    ITERM = auto()
    """https://iterm2.com/documentation-images.html."""
    BLOCKS = auto()
    """As coloured characters, two pixels each."""


def protocol_of(environment: Mapping[str, str]) -> Protocol:
    """Tell what a terminal can by the environment that it gives its programs."""
    program = environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or environment.get("TERM", "").startswith("screen"):
        return Protocol.BLOCKS  # which shows what is below it, and that may be anything
    if "KITTY_WINDOW_ID" in environment or program == "ghostty":
        return Protocol.KITTY
    if program in {"iTerm.app", "WezTerm"} or environment.get("LC_TERMINAL") == "iTerm2":
        return Protocol.ITERM
    return Protocol.BLOCKS


def shows_pictures() -> bool:
    """Tell whether standard output is a terminal with colours."""
    console = Console()
    return sys.stdout.isatty() and console.color_system is not None and not console.no_color


def show_results(results: Sequence[Result]) -> None:
    """Print a table, a row for each result."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("rank", "relevance", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    explained = any(result.explanation for result in results)
    for name in ("label", "caption", "path", *(["explanation"] if explained else [])):
        table.add_column(name, overflow="fold")
    for result in results:
        relevance = "" if result.relevance is None else f"{result.relevance:.2f}"
        texts = [result.label, result.caption, result.path, *([_because(result.explanation)] if explained else [])]
        table.add_row(str(result.rank), relevance, f"{result.score:.3f}", *(_plain(text or "") for text in texts))
    _console().print(table)


def show_findings(rows: Sequence[Mapping[str, str]]) -> None:
    """Print a table, a row for each check of `kindred doctor`."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("check", "state", "found", "remedy"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_plain(row[str(column.header)]) for column in table.columns))
    _console().print(table)


def show_classes(answer: ClassifyResponse) -> None:
    """Print a table, a row for each class."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("probability", justify="right", no_wrap=True)
    table.add_column("label", overflow="fold")
    for each in answer.classes:
        table.add_row(f"{each.probability:.2f}", _plain(each.label))
    _console().print(table)


def show_pictures(results: Sequence[Result], thumbnails: Sequence[bytes | None]) -> None:
    """Print the thumbnails of results, side by side, with their ranks below."""
    console = _console()
    protocol = protocol_of(os.environ)
    side = _COLUMNS if protocol is Protocol.BLOCKS else _SIDE
    across = max(1, console.width // _COLUMNS)
    for start in range(0, len(results), across):
        row = results[start : start + across]
        strip = _strip(thumbnails[start : start + across], side)
        if protocol is Protocol.BLOCKS:
            console.print(blocks(strip), no_wrap=True)
        else:
            write = kitty if protocol is Protocol.KITTY else iterm
            console.file.write(write(strip, len(row) * _COLUMNS, _ROWS) + "\n")
        console.print(Text("".join(str(result.rank).center(_COLUMNS) for result in row)), no_wrap=True)


def kitty(image: Image.Image, columns: int, rows: int) -> str:
    """Return what has kitty draw an image over so many characters."""
    data = _png(image)
    chunks = [data[start : start + _KITTY_CHUNK] for start in range(0, len(data), _KITTY_CHUNK)]
    heads = [f"a=T,f=100,q=2,c={columns},r={rows},", *[""] * (len(chunks) - 1)]
    more = [*[1] * (len(chunks) - 1), 0]
    return "".join(f"\x1b_G{head}m={m};{chunk}\x1b\\" for head, m, chunk in zip(heads, more, chunks, strict=True))


def iterm(image: Image.Image, columns: int, rows: int) -> str:
    """Return what has iTerm2 draw an image over so many characters."""
    return f"\x1b]1337;File=inline=1;width={columns};height={rows};preserveAspectRatio=0:{_png(image)}\x07"


def blocks(image: Image.Image) -> Text:
    """Return an image as characters, each of which is two of its pixels, one above the other."""
    pixels = np.asarray(image.convert("RGBA")).tolist()
    lines = [Text().join(map(_block, top, bottom)) for top, bottom in zip(pixels[::2], pixels[1::2], strict=True)]
    return Text("\n").join(lines)


def _block(top: Sequence[int], bottom: Sequence[int]) -> Text:
    above, below = (Color.from_rgb(*pixel[:3]) if pixel[3] else None for pixel in (top, bottom))
    if above:
        return Text("▀", Style(color=above, bgcolor=below))
    return Text("▄", Style(color=below)) if below else Text(" ")


def _strip(thumbnails: Sequence[bytes | None], side: int) -> Image.Image:
    """Put thumbnails side by side, each in a square; what is free is transparent."""
    strip = Image.new("RGBA", (side * len(thumbnails), side))
    inner = side - max(1, side // _COLUMNS)
    for at, thumbnail in enumerate(thumbnails):
        if thumbnail is not None:
            with Image.open(io.BytesIO(thumbnail)) as picture:
                fitted = ImageOps.contain(picture.convert("RGB"), (inner, inner))
            strip.paste(fitted, (at * side + (inner - fitted.width) // 2, (inner - fitted.height) // 2))
    return strip


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_NO_END)


def _plain(text: str) -> Text:
    """Take a text for no more than it is: a caption may hold rich's markup, or codes that a terminal obeys."""
    line = " ".join(text.split())
    return Text("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line))


def _because(explanation: Explanation | None) -> str:
    return ", ".join(_effects(explanation)) if explanation else ""


def _effects(explanation: Explanation) -> Iterator[str]:
    for part in explanation.parts:
        yield f"{part.part} {part.score if part.share is None else part.share:+.3f}"
    for word in explanation.words:
        yield f"{word.word} {word.effect:+.3f}"
