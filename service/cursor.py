"""Cursors: where an answer ended, in a text that clients send back as it is.

A cursor is bound to its snapshot and to the request, so that no page repeats a picture of an earlier one.
"""

import base64
import hashlib
import zlib
from typing import Self

from pydantic import BaseModel, ConfigDict

from service.errors import BadQuery, CursorExpired

# What a cursor may unpack to, in bytes: a million times less than what a hostile one could.
_MOST = 2**20


class Cursor(BaseModel):
    """Where an answer ended.

    Attributes:
        snapshot: the id of the snapshot that answered.
        request: a digest of the request, as `digest` makes it.
        rows: of the pictures that were answered with, first to last; for browsing only the last one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    snapshot: str
    request: str
    rows: tuple[int, ...]

    def encoded(self) -> str:
        """Return the text that a client is given."""
        return base64.urlsafe_b64encode(zlib.compress(self.model_dump_json().encode(), 9)).decode().rstrip("=")

    @classmethod
    def read(cls, text: str, snapshot: str, request: str) -> Self:
        """Read what a client sends back.

        Raises:
            BadQuery: it is none of ours, or belongs to another request.
            CursorExpired: another snapshot is served by now.
        """
        try:
            packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            cursor = cls.model_validate_json(_unpacked(packed))
        except (ValueError, zlib.error) as error:
            raise BadQuery("This is no cursor: send `next_cursor` of an earlier answer as it came.") from error
        if cursor.snapshot != snapshot:
            raise CursorExpired("The index has been rebuilt since the first page; ask for the first page again.")
        if cursor.request != request:
            raise BadQuery("The cursor belongs to another request: send it with the request that it was the answer to.")
        return cursor


def _unpacked(packed: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(packed, _MOST)
    if not unpacking.eof:
        raise ValueError("it has been cut, or is too large")
    return data


def digest(*parts: str | bytes) -> str:
    """Return a short digest of what makes a request what it is."""
    each = (part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass") for part in parts)
    return hashlib.sha256(b"\0".join(each)).hexdigest()[:16]
