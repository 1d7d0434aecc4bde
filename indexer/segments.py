"""Segments: a text of any length in pieces that a text tower reads whole."""

import re
from bisect import bisect_left
from collections.abc import Callable

Fits = Callable[[str], bool]
"""Whether a text tower reads all of a text; whatever begins a text that fits, fits as well."""

# Where a piece may end, best first: after a sentence, a clause, a word.
_ENDS = (
    re.compile(r"""[.!?…]["'”’»)\]]*(?=\s)|[。！？]|(?=\n)"""),  # noqa: RUF001 - full-width signs are meant
    re.compile(r"[,;:)—–-](?=\s)|[、，；：]"),  # noqa: RUF001
    re.compile(r"\S(?=\s)"),
)
_WORD = re.compile(r"\S+")

# Characters that are tried at first, more than most contexts hold; for later pieces twice as many as the last one has.
# More are tried only where these fit, since a tokenizer may take seconds for a word of 10,000 letters.
_WINDOW = 512
_LEAST_WINDOW = 32
# What has more letters is no word.
_LONGEST_WORD = 256


def segments(text: str, fits: Fits) -> list[str]:
    """Return a text in pieces that fit, each as long as it can be if it is to end with a sentence.

    Where no sentence fits, a piece ends with a clause, else with a word, and only a word that does not fit by itself is
    cut. Nothing but space between pieces is lost. A text that fits is one piece, as it is.
    """
    pieces = []
    start, window = 0, _WINDOW
    while start < len(text):
        end = _reach(text, start, window, fits)
        if end < len(text):
            end = _end(text, start, end)
        elif not start:
            return [text]
        pieces.append(text[start:end].strip())
        start, window = end, max(2 * (end - start), _LEAST_WINDOW)
    return [piece for piece in pieces if piece] or [text]


def _reach(text: str, start: int, window: int, fits: Fits) -> int:
    """Return how far a piece that begins at `start` can reach: over whole words, or into one by a letter or more."""
    while fits(text[start : (tried := _word_end(text, start, start + window))]):
        if tried == len(text):
            return tried
        window *= 2

    def too_long(end: int) -> bool:
        return not fits(text[start:end])

    ends = [start + word.end() for word in _WORD.finditer(text[start:tried])] or [tried]
    words = bisect_left(ends, True, key=too_long)
    if words:
        return ends[words - 1]
    letters = range(start + 1, max(ends[0], start + 2))
    return letters[max(bisect_left(letters, True, key=too_long), 1) - 1]


def _word_end(text: str, start: int, end: int) -> int:
    """Return the end of the last word that ends at `end` or a little before; `end` where that is within no word."""
    if end >= len(text):
        return len(text)
    return next((at for at in range(end, max(start, end - _LONGEST_WORD), -1) if text[at].isspace()), end)


def _end(text: str, start: int, reach: int) -> int:
    """Return where the piece that begins at `start` ends best."""
    for pattern in _ENDS:
        # With one character more, by which a pattern knows that a sentence or a word ends at `reach`.
        found = (match.end() for match in pattern.finditer(text, start, reach + 1))
        last = max((end for end in found if end <= reach), default=start)
        if text[start:last].strip():
            return last
    return reach
