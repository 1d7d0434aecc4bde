"""Source: what every kind of source can do, and Item: what it says of a picture before the picture is read."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from indexer.errors import Reason
from indexer.images import DecodePolicy
from indexer.labels import Description


class Refusal(NamedTuple):
    """Why a picture cannot be used, whatever its bytes are."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Item:
    """A picture as a source lists it.

    Attributes:
        key: its name, with `/` between its parts: the same in every listing, unique in its source, UTF-8.
        place: what `Source.read` finds it by.
        size: bytes, where that is known without reading it.
        stamp: text that changes when the bytes do (a time of change, an ETag), where there is one to trust.
        description: what the source says of it.
        refusal: set where the listing already shows that it cannot be used.
    """

    key: str
    place: str
    size: int | None = None
    stamp: str | None = None
    description: Description = field(default_factory=Description)
    refusal: Refusal | None = None


class Source(Protocol):
    """A collection of pictures. Picklable: decoding processes, on other machines too, take it along."""

    @property
    def remote(self) -> bool:
        """Whether reading waits for a network, so that more readers than cores pay."""
        ...

    def items(self) -> Iterator[Item]:
        """List every picture in a stable order, in bounded memory.

        Raises:
            BuildError: the source does not exist, or cannot be listed to its end.
        """
        ...

    def read(self, place: str, policy: DecodePolicy) -> bytes:
        """Return the bytes of a picture; safe to call from several threads.

        Raises:
            ImageError: it is gone, too large, outside the source, or cannot be read.
        """
        ...
