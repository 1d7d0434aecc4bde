"""From what a user types to sources."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from indexer.errors import BuildError
from indexer.images import DecodePolicy
from indexer.sources.fetch import FetchPolicy, is_http
from indexer.sources.folder import FolderSource
from indexer.sources.remote import RemoteSource, is_url, lies_within
from indexer.sources.source import Item, Source
from indexer.sources.tables import ENDINGS, TableSource
from indexer.sources.tar_source import TarSource
from indexer.tars import expand, find_shards

_NAMED = re.compile(r"(\w[\w.-]*)=(.+)")
_WHAT_THERE_IS = (
    f"a folder, a list or table ({', '.join(ENDINGS)}), WebDataset shards (.tar, or a pattern such as "
    "{000..009}.tar), or the URL of one of these (s3://...)"
)


@dataclass(frozen=True)
class NamedSource:
    """A source whose keys begin with a name, so that several may hold pictures of one name."""

    name: str
    source: Source

    @property
    def remote(self) -> bool:
        """As the source is."""
        return self.source.remote

    def items(self) -> Iterator[Item]:
        """List what the source lists.

        Raises:
            BuildError: as the source does.
        """
        return (replace(item, key=f"{self.name}/{item.key}") for item in self.source.items())

    def read(self, place: str, policy: DecodePolicy) -> bytes:
        """Return the bytes of a picture.

        Raises:
            ImageError: as the source does.
        """
        return self.source.read(place, policy)


def open_sources(names: Sequence[str], fetch: FetchPolicy) -> tuple[Source, ...]:
    """Return a source for each name that a user typed; `NAME=SOURCE` puts `NAME/` before its keys.

    Raises:
        BuildError: a name is of nothing that there is.
    """
    return tuple(_open(name, fetch) for name in names)


def absolute(name: str) -> str:
    """Return a typed name as it holds in any folder; of `NAME=SOURCE`, the source."""
    prefix, source = _split(name)
    source = source.removeprefix("file://")
    if not is_url(source):
        source = os.path.abspath(source)  # noqa: PTH100 - Path.absolute keeps ".."
    return f"{prefix}={source}" if prefix else source


def is_within(name: str, roots: Sequence[str]) -> bool:
    """Tell whether what a typed name leads to lies in one of these folders, or below one of these URLs."""
    return lies_within(_split(absolute(name))[1], roots)


def _open(name: str, fetch: FetchPolicy) -> Source:
    prefix, location = _split(absolute(name))
    source = _remote(location, fetch) if is_url(location) else _local(location, fetch)
    return NamedSource(prefix, source) if prefix else source


def _split(name: str) -> tuple[str, str]:
    """Return the NAME of `NAME=SOURCE`, or nothing, and the source. What lies on disk under the whole name wins."""
    named = _NAMED.fullmatch(name)
    return (named[1], named[2]) if named and not Path(name).exists() else ("", name)


def _local(location: str, fetch: FetchPolicy) -> Source:
    path = Path(location)
    if shards := find_shards(path):
        return TarSource(tuple(map(str, shards)))
    if path.is_dir():
        return FolderSource(path)
    if path.suffix in ENDINGS and path.is_file():
        return TableSource(location, fetch)
    wrong = f"is neither {_WHAT_THERE_IS}" if path.exists() else f"does not exist. A source is {_WHAT_THERE_IS}"
    raise BuildError(f"{location} {wrong}.")


def _remote(url: str, fetch: FetchPolicy) -> Source:
    if is_http(url) or re.search(r"::https?:", url, re.IGNORECASE):
        raise BuildError(
            f"{url} is no source: a list, table or tar is not fetched from the web. Download it first; the URLs in it "
            "are fetched from the hosts in KINDRED_FETCH_HOSTS."
        )
    if url.endswith(".tar"):
        return TarSource(tuple(expand(url)))
    return TableSource(url, fetch) if url.endswith(ENDINGS) else RemoteSource(url)
