"""Tables in Markdown, as every benchmark here writes them."""

from collections.abc import Iterable, Sequence
from statistics import median


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of a head and rows of equal length."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(values: Sequence[float]) -> str:
    """Return the least, the median and the greatest of some values; nothing of none."""
    return " / ".join(f"{value:.1f}" for value in (min(values), median(values), max(values))) if values else ""
