"""TarSource: the pictures in WebDataset tars, or in tars of folders."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from indexer.errors import BuildError, ImageError, Reason
from indexer.images import DecodePolicy, is_utf8
from indexer.sources.folder import printable, size_and_stamp
from indexer.sources.remote import is_url, opened, read_range, stamp_of
from indexer.sources.source import Item, Refusal
from indexer.tars import Entry, Member, check_length, check_size, read_pictures


@dataclass(frozen=True)
class TarSource:
    """Tars by path or URL; a picture's key is its whole name in its tar, as it is in the folder that the tar is of.

    What is known of the members of one tar is in memory while it is listed, about 1 kB each. To list a remote tar is to
    read it through once; its pictures are read by their place.
    """

    tars: tuple[str, ...]

    @property
    def remote(self) -> bool:
        """Whether a tar lies on another machine."""
        return any(is_url(tar) for tar in self.tars)

    def items(self) -> Iterator[Item]:
        """List every picture; hidden ones are left out, as they are from a folder.

        Raises:
            BuildError: a tar is missing, damaged, compressed, or holds a member twice.
        """
        for tar in self.tars:
            stamp = stamp_of(tar) if is_url(tar) else size_and_stamp(Path(tar))[1]
            with _open(tar) as file:
                for entry in read_pictures(file, tar):
                    name = PurePosixPath(entry.name)
                    if not any(part.startswith(".") and part != ".." for part in name.parts):
                        yield _item(name.as_posix(), entry, tar, stamp)

    def read(self, place: str, policy: DecodePolicy) -> bytes:
        """Return the bytes of a picture.

        Raises:
            ImageError: it is too large, or its tar is gone, has changed, or cannot be read.
        """
        offset, size, tar = place.split(":", 2)
        if tar not in self.tars:
            raise ImageError(Reason.OUTSIDE_SOURCE, f"{tar} is no tar of this source.")
        member = Member(tar, int(offset), int(size))
        if not is_url(tar):
            return member.read(policy)
        check_size(member.size, policy)
        data = read_range(tar, member.offset, member.size)
        check_length(data, member.size, tar)
        return data


def _item(key: str, entry: Entry, tar: str, stamp: str | None) -> Item:
    if not is_utf8(key):
        key = printable(key)
    picture = entry.picture
    if not isinstance(picture, Member):
        return Item(key, key, description=entry.description, refusal=Refusal(picture.reason, picture.detail))
    place = f"{picture.offset}:{picture.size}:{tar}"
    return Item(key, place, picture.size, stamp and f"{stamp}:{picture.offset}", entry.description)


def _open(tar: str) -> AbstractContextManager[BinaryIO]:
    if is_url(tar):
        return opened(tar)
    try:
        return Path(tar).open("rb")
    except OSError as error:
        raise BuildError(f"The shard {tar} cannot be read: {error.strerror}.") from error
