"""Words of a text, for saying which of them do not hold of a picture.

What a word brings to a picture's score is how much the score falls without it: cos(text, x) - cos(text without it, x).
A word that says what the picture does not show has the lowest value, mostly below 0. It needs the picture's stored
vector only, and no gradients, as CLIP4DM's attribution by attention does.
"""

MOST_WORDS = 16
"""Words of a text that are left out one by one: the first."""

_MARKS = ".,;:!?\"'()[]…“”‘’«»-–—"  # noqa: RUF001 - typographic marks are meant


def without_each(text: str) -> list[tuple[str, str]]:
    """Return each word of a text, without the marks around it, and the text without that word.

    A text of one word has nothing to leave out.
    """
    parts = text.split()
    words = [(place, part.strip(_MARKS)) for place, part in enumerate(parts)]
    named = [(place, word) for place, word in words if word]
    if len(named) < 2:  # noqa: PLR2004
        return []
    return [(word, " ".join(parts[:place] + parts[place + 1 :])) for place, word in named[:MOST_WORDS]]
