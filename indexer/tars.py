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

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
"""Endings of pictures in a shard."""

_TEXTS = ("txt", "cls", "json")
_COMPRESSED = (".tar.gz", ".tgz")
_GZIP = b"\x1f\x8b"
_NUMBERS = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
# What is said of one picture is short; a longer member is damage or malice.
_MAX_TEXT_BYTES = 2**20


@dataclass(frozen=True)
class Member:
    """Where the bytes of a picture lie in a shard: `offset` and `size` in bytes."""

    shard: str
    offset: int
    size: int

    def read(self, policy: DecodePolicy) -> bytes:
        """Return the bytes of the picture; safe to call from several threads.

        Raises:
            ImageError: it is too large, or the shard cannot be read any more.
        """
        check_size(self.size, policy)
        try:
            with Path(self.shard).open("rb") as file:
                data = _read(file, self.offset, self.size)
        except OSError as error:
            raise ImageError(Reason.UNREADABLE, f"{self.shard} cannot be read: {error.strerror}.") from error
        check_length(data, self.size, self.shard)
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
    """What a shard holds under one key; it costs only itself where the picture or what is said of it is no good.

    `name` is the picture's whole name in the shard, or that of the first member where there is no picture.
    """

    key: str
    name: str
    description: Description
    picture: Member | Refused


def check_size(size: int, policy: DecodePolicy) -> None:
    """Refuse a member that is too large.

    Raises:
        ImageError: it is.
    """
    if size > policy.max_bytes:
        raise ImageError(Reason.TOO_MANY_BYTES, f"The member has {size:,} bytes; the limit is {policy.max_bytes:,}.")


def check_length(data: bytes, size: int, shard: str) -> None:
    """Refuse the bytes of a member where the shard ends before it.

    Raises:
        ImageError: it does.
    """
    if len(data) != size:
        raise ImageError(Reason.CHANGED, f"{shard} has become shorter since it was opened.")


def find_shards(data: Path) -> list[Path]:
    """Return the shards that `data` names, or nothing where it names something else.

    Shards are a `.tar` file, a folder of nothing else, or a pattern such as `folder/{000..009}.tar`.

    Raises:
        BuildError: it names compressed shards, or a pattern of which a shard is missing.
    """
    if data.name.endswith(_COMPRESSED):
        raise _compressed(str(data))
    if data.is_dir():
        names = sorted(path for path in data.iterdir() if not path.name.startswith("."))
        return names if all(path.suffix == ".tar" and path.is_file() for path in names) else []
    if data.suffix != ".tar":
        return []
    shards = []
    for path in [data] if data.exists() else map(Path, expand(str(data))):
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
            for key, members in _groups(file, str(shard)).items():
                picture = next((members[ending] for ending in members if ending.lower() in IMAGES), None)
                yield _entry(key, picture, members, file, str(shard))
    except OSError as error:
        raise BuildError(f"The shard {shard} cannot be read: {error.strerror or error}.") from error


def read_pictures(file: BinaryIO, shard: str) -> Iterator[Entry]:
    """Yield every picture of an open shard with what is said of it, as a folder of its members would hold them.

    Unlike for `read_shard`, every picture of a key counts, and dots in a name make it no less a picture: what is said
    of `a.b.png` is `a.b.txt`, or `a.txt` where there is none.

    Raises:
        BuildError: the file is no tar, is compressed, damaged or cut off, or holds a member twice.
        OSError: it cannot be read.
    """
    for key, members in _groups(file, shard).items():
        pictures = [ending for ending in members if ending.lower().rpartition(".")[2] in IMAGES]
        for ending in pictures:
            dotted = ending[: ending.rfind(".") + 1]
            own = {other.removeprefix(dotted): members[other] for other in members if other.startswith(dotted)}
            yield _entry(key, members[ending], own if _texts(own) else members, file, shard)
        if not pictures:
            yield _entry(key, None, members, file, shard)


def _groups(file: BinaryIO, shard: str) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Return the members of a shard by key and ending."""
    groups: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in _members(file, shard):
        name = PurePosixPath(member.name)
        stem, dot, ending = name.name.partition(".")
        if member.isdir() or not dot or not stem:
            continue
        group = groups.setdefault(member.name[: -len(name.name)] + stem, {})
        if ending in group:
            raise BuildError(f"The shard {shard} holds {member.name!r} twice.")
        group[ending] = member
    return groups


def _members(file: BinaryIO, shard: str) -> list[tarfile.TarInfo]:
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


def _texts(members: dict[str, tarfile.TarInfo]) -> dict[str, tarfile.TarInfo]:
    """Return the members that say something of a picture."""
    return {ending.lower(): member for ending, member in members.items() if ending.lower() in _TEXTS}


def _entry(
    key: str, picture: tarfile.TarInfo | None, members: dict[str, tarfile.TarInfo], file: BinaryIO, shard: str
) -> Entry:
    texts = _texts(members)
    name = (picture or next(iter(members.values()))).name
    try:
        for member in (picture, *texts.values()):
            if member:
                _check(member)
        return Entry(key, name, _description(key, texts, file), _picture(key, picture, shard))
    except ImageError as error:
        return Entry(key, name, Description(), Refused(error.reason, str(error)))


def _picture(key: str, member: tarfile.TarInfo | None, shard: str) -> Member:
    if member:
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
    """Return what the texts of one picture say; each must be short UTF-8."""
    try:
        texts = {ending: _text(member, file) for ending, member in members.items()}
        row = parse_object(texts["json"], f"{key}.json") if "json" in texts else {}
        description = describe(row)[1]
        written = [*texts.get("txt", "").split("\n"), *description.captions()]
    except (BuildError, UnicodeDecodeError) as error:
        raise ImageError(Reason.UNREADABLE, f"What is said of {key!r} cannot be read: {error}") from error
    label = texts.get("cls", "").strip() or description.label
    metadata = {name: value for name, value in description.metadata.items() if name != "captions"}
    captions = Description(metadata={"captions": written}).captions()
    if len(captions) > 1:
        metadata["captions"] = list(captions)
    return Description(label, captions[0] if captions else None, metadata)


def _text(member: tarfile.TarInfo, file: BinaryIO) -> str:
    if member.size > _MAX_TEXT_BYTES:
        detail = f"{member.name!r} has {member.size:,} bytes; the limit for texts is {_MAX_TEXT_BYTES:,}."
        raise ImageError(Reason.TOO_MANY_BYTES, detail)
    return _read(file, member.offset_data, member.size).decode("utf-8-sig")


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def expand(pattern: str) -> Iterator[str]:
    """Yield the names of a pattern: `{08..11}` stands for 08, 09, 10 and 11."""
    found = _NUMBERS.search(pattern)
    if not found:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from expand(f"{pattern[: found.start()]}{number:0{len(first)}}{pattern[found.end() :]}")


def _compressed(shard: str) -> BuildError:
    return BuildError(
        f"The shard {shard} is compressed. Its pictures are read by their place in the file: decompress it (gunzip)."
    )


def _damaged(shard: str, end: int) -> BuildError:
    return BuildError(f"The shard {shard} is damaged or cut off at byte {end:,}: read it from its source again.")
