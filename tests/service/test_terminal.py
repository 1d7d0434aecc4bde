"""Results in a terminal: no text does more than to be read, and pictures arrive as they are."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image, ImageChops

from service.schemas.items import Explanation, PartShare, WordEffect
from service.terminal import Protocol, blocks, iterm, kitty, protocol_of, show_results
from tests.service.test_picture_grid import response


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    return Image.fromarray(pixels, "RGBA")


def same(data: str, image: Image.Image) -> bool:
    """Tell whether base64 is a file of that image."""
    with Image.open(io.BytesIO(base64.b64decode(data))) as sent:
        return ImageChops.difference(sent.convert("RGBA"), image).getbbox(alpha_only=False) is None


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({}, Protocol.BLOCKS),
        ({"TERM": "xterm-256color"}, Protocol.BLOCKS),
        ({"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"}, Protocol.KITTY),
        ({"TERM_PROGRAM": "ghostty"}, Protocol.KITTY),
        ({"TERM_PROGRAM": "iTerm.app"}, Protocol.ITERM),
        ({"LC_TERMINAL": "iTerm2"}, Protocol.ITERM),
        ({"TERM_PROGRAM": "WezTerm"}, Protocol.ITERM),
        ({"KITTY_WINDOW_ID": "1", "TMUX": "/tmp/tmux,1,0"}, Protocol.BLOCKS),  # noqa: S108 - never opened
        ({"TERM": "screen-256color", "LC_TERMINAL": "iTerm2"}, Protocol.BLOCKS),
    ],
)
def test_a_terminal_is_known_by_its_environment(environment: dict[str, str], protocol: Protocol) -> None:
    assert protocol_of(environment) is protocol


def test_kitty_gets_the_picture_in_chunks_that_it_takes() -> None:
    image = noise(120, 60)
    commands = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty(image, 12, 3))
    assert "".join(f"\x1b_G{head};{data}\x1b\\" for head, data in commands) == kitty(image, 12, 3)
    assert commands[0][0] == "a=T,f=100,q=2,c=12,r=3,m=1"
    assert [head for head, _ in commands[1:]] == ["m=1"] * (len(commands) - 2) + ["m=0"]
    assert all(len(data) <= 4_096 for _, data in commands)
    assert same("".join(data for _, data in commands), image)


def test_iterm_gets_the_picture_in_one_piece() -> None:
    image = noise(30, 20)
    found = re.fullmatch(
        r"\x1b\]1337;File=inline=1;width=6;height=2;preserveAspectRatio=0:([^\x07]*)\x07", iterm(image, 6, 2)
    )
    assert found is not None
    assert same(found[1], image)


def test_a_block_is_two_pixels_one_above_the_other() -> None:
    red, green, none = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 0, 0)
    image = Image.fromarray(np.array([[red, red, none, none], [green, none, green, none]], np.uint8), "RGBA")
    text = blocks(image)
    assert text.plain == "▀▀▄ "
    styles = {span.start: str(span.style) for span in text.spans}
    assert styles == {0: "#ff0000 on #00ff00", 1: "#ff0000", 2: "#00ff00"}


def test_a_caption_cannot_command_the_terminal_nor_its_own_colour(capsys: pytest.CaptureFixture[str]) -> None:
    show_results(
        response({"caption": "\x1b]0;owned\x07[bold red]x[/] \x9b31m\ra\nb\u202eü", "path": "a\x1b[2J.png"}).results
    )
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\x07\x9b\r\u202e")
    assert "[bold red]x[/]" in printed
    assert "a b\N{REPLACEMENT CHARACTER}ü" in printed
    assert len(printed.splitlines()) == 2


def test_lines_are_not_broken_where_no_one_looks(capsys: pytest.CaptureFixture[str]) -> None:
    show_results(response({"path": "x" * 500, "caption": "y " * 200}).results)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_explanation_tells_what_each_part_and_word_brings(capsys: pytest.CaptureFixture[str]) -> None:
    parts = [PartShare(part="/query/0", score=0.3, share=0.2), PartShare(part="/none_of/0", score=0.1, share=None)]
    words = [WordEffect(part="/query/0", word="blue", effect=-0.05)]
    show_results(response({"explanation": Explanation(parts=parts, words=words)}).results)
    assert "/query/0 +0.200, /none_of/0 +0.100, blue -0.050" in capsys.readouterr().out
