"""WebDataset shards: tar files whose members are the pictures and what is said of them.

Each shard is read through once, headers only; its pictures are read by their place in the file afterwards. That random
access is what class-balanced sampling needs, and what lets an interrupted training go on bit for bit. Nothing is ever
extracted to disk, so the names in a shard open no file.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from indexer.errors import BuildError, ImageError, Reason
from indexer.images import DecodePolicy, is_utf8
from indexer.labels import Description, describe, parse_object

IMAGES = ("jpg", "jpeg", "png", "webp")
"""Endings of pictures in a shard."""

_COMPRESSED = (".tar.gz", ".tgz")
_GZIP = b"\x1f\x8b"
_NUMBERS = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
# What is said of one picture is short; a longer member is damage or malice.
_MAX_TEXT_BYTES = 2**20


@dataclass(frozen=True)
class Member:
    """Where the bytes of a picture lie in a shard: `offset` and `size` in bytes."""

    shard: Path
    offset: int
    size: int

    def read(self, policy: DecodePolicy) -> bytes:
        """Return the bytes of the picture; safe to call from several threads.

        Raises:
            ImageError: it is too large, or the shard cannot be read any more.
        """
        if self.size > policy.max_bytes:
            detail = f"The member has {self.size:,} bytes; the limit is {policy.max_bytes:,}."
            raise ImageError(Reason.TOO_MANY_BYTES, detail)
        try:
            with self.shard.open("rb") as file:
                data = _read(file, self.offset, self.size)
        except OSError as error:
            raise ImageError(Reason.UNREADABLE, f"{self.shard} cannot be read: {error.strerror}.") from error
        if len(data) != self.size:
            raise ImageError(Reason.CHANGED, f"{self.shard} has become shorter since it was opened.")
        return data


@dataclass(frozen=True)
class Refused:
    """A picture of a shard that cannot be used, whatever its bytes are."""

    reason: Reason
    detail: str

    def read(self, _: DecodePolicy) -> bytes:
        """Say why.

        Raises:
            ImageError: always.
        """
        raise ImageError(self.reason, self.detail)


@dataclass(frozen=True)
class Entry:
    """What a shard holds under one key; it costs only itself where the picture or what is said of it is no good."""

    key: str
    description: Description
    picture: Member | Refused


def find_shards(data: Path) -> list[Path]:
    """Return the shards that `data` names, or nothing where it names something else.

    Shards are a `.tar` file, a folder of nothing else, or a pattern such as `folder/{000..009}.tar`.

    Raises:
        BuildError: it names compressed shards, or a pattern of which a shard is missing.
    """
    if data.name.endswith(_COMPRESSED):
        raise _compressed(data)
    if data.is_dir():
        names = sorted(path for path in data.iterdir() if not path.name.startswith("."))
        return names if all(path.suffix == ".tar" and path.is_file() for path in names) else []
    if data.suffix != ".tar":
        return []
    shards = []
    for path in [data] if data.exists() else _expand(str(data)):
        if not path.is_file():
            raise BuildError(f"The shard {path} does not exist.")
        shards.append(path)
    return shards


def read_shard(shard: Path) -> Iterator[Entry]:
    """Yield what a shard holds, in its order.

    A member's key is its name up to the first dot of the base name, and what follows tells what it is: a picture, or
    what is said of it (`.txt`: captions, one per line; `.cls`: the label; `.json`: an object with `label`, `caption`
    or `captions`, whose other values are metadata). As webdataset does, members of other endings are left out. Of
    several pictures of one key the first counts.

    Raises:
        BuildError: the file is no tar, is compressed, damaged or cut off, or holds a member twice.
    """
    try:
        with shard.open("rb") as file:
            for key, members in _groups(file, shard).items():
                yield _entry(key, members, file, shard)
    except OSError as error:
        raise BuildError(f"The shard {shard} cannot be read: {error.strerror or error}.") from error


def _groups(file: BinaryIO, shard: Path) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Return the members of a shard by key and ending."""
    groups: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in _members(file, shard):
        name = PurePosixPath(member.name)
        stem, dot, ending = name.name.partition(".")
        if member.isdir() or not dot or not stem:
            continue
        group = groups.setdefault(member.name[: -len(name.name)] + stem, {})
        if ending.lower() in group:
            raise BuildError(f"The shard {shard} holds {member.name!r} twice.")
        group[ending.lower()] = member
    return groups


def _members(file: BinaryIO, shard: Path) -> list[tarfile.TarInfo]:
    """Return every member of a tar file, which must be whole."""
    if file.read(len(_GZIP)) == _GZIP:
        raise _compressed(shard)
    file.seek(0)
    members = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            end = 0
            for member in tar:
                # tarfile follows a negative size back to where it came from, for ever.
                if member.size < 0 or member.offset < end:
                    raise _damaged(shard, end)
                members.append(member)
                end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise BuildError(f"The shard {shard} is no tar file, or is damaged or cut off: {error}.") from error
    # tarfile takes a damaged header and a missing end for the end.
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise _damaged(shard, end)
    return members


def _entry(key: str, members: dict[str, tarfile.TarInfo], file: BinaryIO, shard: Path) -> Entry:
    try:
        for member in members.values():
            _check(member)
        return Entry(key, _description(key, members, file), _picture(key, members, shard))
    except ImageError as error:
        return Entry(key, Description(), Refused(error.reason, str(error)))


def _picture(key: str, members: dict[str, tarfile.TarInfo], shard: Path) -> Member:
    for ending, member in members.items():
        if ending in IMAGES:
            return Member(shard, member.offset_data, member.size)
    endings = ", ".join(f".{ending}" for ending in IMAGES)
    raise ImageError(Reason.NOT_AN_IMAGE, f"{key!r} has no picture ({endings}) in the shard.")


def _check(member: tarfile.TarInfo) -> None:
    """Refuse what no honest shard holds. Nothing here is opened by name: such a member is not trusted, not feared."""
    if not is_utf8(member.name):
        raise ImageError(Reason.BAD_NAME, f"The name of a member is not UTF-8: {member.name!r}.")
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        raise ImageError(Reason.BAD_NAME, f"The name of a member leads out of the shard: {member.name!r}.")
    if member.issym() or member.islnk():
        raise ImageError(Reason.OUTSIDE_SOURCE, f"{member.name!r} is a link to {member.linkname!r}.")
    if not member.isreg() or member.issparse():
        raise ImageError(Reason.UNREADABLE, f"{member.name!r} is no plain file.")


def _description(key: str, members: dict[str, tarfile.TarInfo], file: BinaryIO) -> Description:
    """Return what the members of one key say; each must be short UTF-8."""
    try:
        texts = {ending: _text(members[ending], file) for ending in ("txt", "cls", "json") if ending in members}
        row = parse_object(texts["json"], f"{key}.json") if "json" in texts else {}
        description = describe(row)[1]
        captions = [*texts.get("txt", "").split("\n"), *description.captions()]
    except (BuildError, UnicodeDecodeError) as error:
        raise ImageError(Reason.UNREADABLE, f"What is said of {key!r} cannot be read: {error}") from error
    label = texts.get("cls", "").strip() or description.label
    return Description(label, None, {**description.metadata, "captions": captions})


def _text(member: tarfile.TarInfo, file: BinaryIO) -> str:
    if member.size > _MAX_TEXT_BYTES:
        detail = f"{member.name!r} has {member.size:,} bytes; the limit for texts is {_MAX_TEXT_BYTES:,}."
        raise ImageError(Reason.TOO_MANY_BYTES, detail)
    return _read(file, member.offset_data, member.size).decode("utf-8-sig")


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _expand(pattern: str) -> Iterator[Path]:
    """Yield the paths of a pattern: `{08..11}` stands for 08, 09, 10 and 11."""
    found = _NUMBERS.search(pattern)
    if not found:
        yield Path(pattern)
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expand(f"{pattern[: found.start()]}{number:0{len(first)}}{pattern[found.end() :]}")


def _compressed(shard: Path) -> BuildError:
    return BuildError(
        f"The shard {shard} is compressed. Its pictures are read by their place in the file: decompress it (gunzip)."
    )


def _damaged(shard: Path, end: int) -> BuildError:
    return BuildError(f"The shard {shard} is damaged or cut off at byte {end:,}: read it from its source again.")
