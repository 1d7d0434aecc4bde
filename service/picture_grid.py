"""SearchResults: the results of a search as a sequence, as rows of a table, and as a grid of pictures in a notebook."""

import base64
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any, overload

from service.schemas.items import Result
from service.schemas.search import SearchResponse

Thumbnails = Callable[[Sequence[str]], Sequence[bytes | None]]
"""From the ids of pictures to their thumbnails; None where there is none."""

# A thousand thumbnails would make a notebook of ten megabytes.
_MOST_SHOWN = 100
_GRID = "display:flex;flex-wrap:wrap;gap:8px"
_TILE = "margin:0;width:160px;font:12px/1.4 system-ui,sans-serif;overflow-wrap:anywhere"
_PICTURE = "width:160px;height:160px;object-fit:contain;background:rgba(128,128,128,.15);border-radius:6px"
_QUIET = "opacity:.7"


class SearchResults(Sequence[Result]):
    """The results of a search, best first.

    Attributes:
        response: the whole answer of the service.
    """

    def __init__(self, response: SearchResponse, thumbnails: Thumbnails | None = None) -> None:
        self.response = response
        self._thumbnails = thumbnails

    @overload
    def __getitem__(self, at: int) -> Result: ...

    @overload
    def __getitem__(self, at: slice) -> list[Result]: ...

    def __getitem__(self, at: int | slice) -> Result | list[Result]:
        return self.response.results[at]

    def __len__(self) -> int:
        return len(self.response.results)

    def __repr__(self) -> str:
        return f"<SearchResults: {self._summary()}>"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a dictionary for each result, all with the same keys, as pandas and pyarrow take them.

        Metadata become columns of their own, called as in a filter: `metadata.year`.
        """
        rows = [
            {
                **result.model_dump(exclude={"metadata"}),
                **{f"metadata.{key}": each for key, each in result.metadata.items()},
            }
            for result in self
        ]
        columns = dict.fromkeys(key for row in rows for key in row)
        return [{column: row.get(column) for column in columns} for row in rows]

    def _repr_html_(self) -> str:
        """Draw a grid of pictures, which are fetched now and are part of the text: it needs no service later."""
        shown = self[:_MOST_SHOWN]
        thumbnails = self._thumbnails([each.id for each in shown]) if self._thumbnails else [None] * len(shown)
        tiles = "".join(map(_tile, shown, thumbnails))
        lines = [self._summary(), *self.response.notes]
        heading = "".join(f'<div style="{_QUIET}">{escape(line)}</div>' for line in lines)
        return f'{heading}<div style="{_GRID}">{tiles}</div>'

    def _summary(self) -> str:
        return "; ".join(self._facts())

    def _facts(self) -> Iterator[str]:
        answer = self.response
        yield f"{len(self):,} of {answer.index.count:,} pictures of snapshot {answer.index.snapshot}"
        if answer.no_confident_match:
            yield "no confident match"
        if len(self) > _MOST_SHOWN:
            yield f"the first {_MOST_SHOWN} are shown"


def _tile(result: Result, thumbnail: bytes | None) -> str:
    name = result.caption or result.label or result.path
    picture = f'<div style="{_PICTURE}"></div>'
    if thumbnail is not None:
        source = f"data:image/jpeg;base64,{base64.b64encode(thumbnail).decode('ascii')}"
        picture = f'<img style="{_PICTURE}" src="{source}" alt="{escape(name)}">'
    relevance = "" if result.relevance is None else f", relevance {result.relevance:.2f}"
    return (
        f'<figure style="{_TILE}" title="{escape(result.path)}">{picture}<figcaption>{result.rank}. {escape(name)}'
        f'<div style="{_QUIET}">score {result.score:.3f}{relevance}</div></figcaption></figure>'
    )
