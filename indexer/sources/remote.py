"""Files on object stores and other file systems that fsspec knows; the door to it.

A file system is looked up for every call: fsspec keeps one for each process and thread, so that a source that travels
to another process takes only names along. Credentials and endpoints come from where the store's own tools take them.
"""

import contextlib
import errno
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from fsspec.core import url_to_fs

from indexer.errors import BuildError, ImageError, KindredError, Reason
from indexer.images import DecodePolicy, is_utf8
from indexer.sources.folder import printable
from indexer.sources.retries import Patience, Transient, persist
from indexer.sources.source import Item, Refusal

_URL = re.compile(r"([a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_STAMPS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "updated", "created")
_PATIENCE = Patience()
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
# s3fs tries five times itself, with botocore below it; neither may wait for minutes.
_S3 = {"config_kwargs": {"connect_timeout": 10, "read_timeout": 20, "retries": {"total_max_attempts": 1}}}

Answer = TypeVar("Answer")


def is_url(name: str) -> bool:
    """Tell whether a name is a URL (`s3://...`) or a chain of them, rather than a path."""
    return _URL.match(name) is not None


def lies_within(location: str, roots: Sequence[str]) -> bool:
    """Tell whether a path or URL lies in one of these folders, or below one of these URLs."""
    if is_url(location):
        # An object store takes ".." for a name like any other, a file system behind a URL may not.
        return ".." not in location.split("/") and any(
            f"{location}/".startswith(f"{root.rstrip('/')}/") for root in roots
        )
    folders = (Path(root).resolve() for root in roots if not is_url(root))
    return any(Path(location).resolve().is_relative_to(folder) for folder in folders)


@dataclass(frozen=True)
class RemoteSource:
    """Every file below a URL such as `s3://bucket/folder`, in the order in which a folder is listed."""

    url: str

    @property
    def remote(self) -> bool:
        """Objects are waited for."""
        return True

    def items(self) -> Iterator[Item]:
        """List every file; hidden ones are left out.

        Of S3 a page is in memory at a time, and the folders of a folder; of others, all that one folder holds.

        Raises:
            BuildError: there is nothing below the URL, or it cannot be listed.
        """
        file_system, root = file_system_of(self.url)
        try:
            yield from _files(file_system, root, "")
        except FileNotFoundError as error:
            raise BuildError(f"There is nothing at {self.url}.") from error
        except (OSError, Transient) as error:
            raise BuildError(f"{self.url} cannot be listed: {error}.") from error

    def read(self, place: str, policy: DecodePolicy) -> bytes:
        """Return the bytes of a file.

        Raises:
            ImageError: it is gone, too large, or stays unreachable.
        """
        return read_url(self.url, policy, place)


def read_url(url: str, policy: DecodePolicy, below: str = "") -> bytes:
    """Return the bytes of a remote picture, or of one below a remote folder, and never more than are allowed.

    Raises:
        ImageError: it is gone, empty, too large, or stays unreachable.
    """
    # One byte more than the limit tells that there is more.
    data = read_range(url, 0, policy.max_bytes + 1, below)
    if len(data) > policy.max_bytes:
        raise ImageError(Reason.TOO_MANY_BYTES, f"The file has more bytes than the limit of {policy.max_bytes:,}.")
    if not data:
        raise ImageError(Reason.EMPTY, "The file is empty.")
    return data


def read_range(url: str, start: int, size: int, below: str = "") -> bytes:
    """Return bytes of a remote file, or of one below a remote folder; fewer where it ends.

    Raises:
        ImageError: it is gone, or stays unreachable.
    """
    name = f"{url.rstrip('/')}/{below}" if below else url
    try:
        # The name of a picture may hold what means something in a URL; so it is no part of one.
        file_system, root = file_system_of(url)
        path = posixpath.join(root, below) if below else root
        return bytes(tried(lambda: file_system.cat_file(path, start=start, end=start + size)))
    except FileNotFoundError as error:
        raise ImageError(Reason.UNREADABLE, f"There is no {name}.") from error
    except OSError as error:
        if error.errno == errno.EINVAL and start == 0:
            return b""  # S3 has no range of an empty object
        raise ImageError(Reason.UNREADABLE, f"{name} cannot be read: {error}.") from error
    except (Transient, BuildError) as error:
        raise ImageError(Reason.UNREACHABLE, f"{name} cannot be reached: {error}") from error


@contextlib.contextmanager
def opened(url: str) -> Iterator[BinaryIO]:
    """Open a remote file to be read through; what is read ahead is some megabytes.

    Raises:
        BuildError: it does not exist, or cannot be read to where it is asked for.
    """
    file_system, path = file_system_of(url)
    try:
        with file_system.open(path, "rb") as file:
            yield file
    except KindredError:
        raise
    except FileNotFoundError as error:
        raise BuildError(f"There is no {url}.") from error
    except Exception as error:
        # Each file system has errors of its own, which fsspec lets through.
        raise BuildError(f"{url} cannot be read: {str(error) or type(error).__name__}.") from error


def stamp_of(url: str) -> str | None:
    """Return text that changes when a remote file does.

    Raises:
        BuildError: it does not exist, or stays unreachable.
    """
    file_system, path = file_system_of(url)
    try:
        return _stamp(tried(lambda: file_system.info(path)))
    except FileNotFoundError as error:
        raise BuildError(f"There is no {url}.") from error
    except (OSError, Transient) as error:
        raise BuildError(f"{url} cannot be reached: {error}.") from error


def file_system_of(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path there."""
    protocol = url.partition(":")[0].lower()
    try:
        # Its cache of listings would hold every name that was ever listed.
        options = _S3 if protocol in {"s3", "s3a"} else {}
        return cast("tuple[Any, str]", url_to_fs(url, use_listings_cache=False, **options))
    except ImportError as error:
        how = " (pip install kindred[s3])" if protocol in {"s3", "s3a"} else ""
        raise BuildError(f"{url} needs a package that is not installed{how}: {error}.") from error
    except ValueError as error:
        raise BuildError(f"{url} names no file system of fsspec, such as s3, gs or az: {error}.") from error


def tried(call: Callable[[], Answer]) -> Answer:
    """Call a file system until it answers: yes, or a no that waiting does not change."""

    def attempt(_: float) -> Answer:
        try:
            return call()
        except Exception as error:
            if isinstance(error, _FINAL) or getattr(error, "errno", None) == errno.EINVAL:
                raise
            # Faults of the network come as any library's own errors: of aiohttp, botocore, google, azure.
            raise Transient(str(error) or type(error).__name__) from error

    return persist(attempt, _PATIENCE)


def _files(file_system: Any, root: str, folder: str) -> Iterator[Item]:
    """List the files of a folder (empty, or ending in `/`) below `root`, and then those below its folders."""
    found = _pages(file_system, root, folder) if "s3" in file_system.protocol else _listing(file_system, root, folder)
    folders = []
    empty = True
    for each in found:
        empty = False
        # A file that marks a folder is named `folder/`.
        name = (each["name"].rstrip("/") if each["type"] == "directory" else each["name"]).rpartition("/")[2]
        if name and not name.startswith("."):
            if each["type"] == "directory":
                folders.append(name)
            else:
                yield _item(folder + name, each)
    if empty and not folder:
        raise FileNotFoundError
    for name in sorted(folders):
        yield from _files(file_system, root, f"{folder}{name}/")


def _listing(file_system: Any, root: str, folder: str) -> list[dict[str, Any]]:
    path = posixpath.join(root, folder).rstrip("/")
    found = tried(lambda: cast("list[dict[str, Any]]", file_system.ls(path, detail=True)))
    # A file is a listing of itself.
    return sorted((each for each in found if each["name"].strip("/") != path.strip("/")), key=lambda each: each["name"])


def _pages(file_system: Any, root: str, folder: str) -> Iterator[dict[str, Any]]:
    """List a folder of a bucket, sorted as S3 sorts. `ls` would hold all of it, and millions may lie side by side."""
    bucket, key, _ = file_system.split_path(root)
    prefix = f"{key.rstrip('/')}/{folder}" if key else folder
    request = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
    while True:
        page = tried(lambda: cast("dict[str, Any]", file_system.call_s3("list_objects_v2", **request)))
        for each in page.get("CommonPrefixes", ()):
            yield {"name": each["Prefix"], "type": "directory"}
        for each in page.get("Contents", ()):
            yield {"name": each["Key"], "type": "file", "size": each["Size"], "ETag": each["ETag"]}
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _item(key: str, found: dict[str, Any]) -> Item:
    if not is_utf8(key):
        refusal = Refusal(Reason.BAD_NAME, f"The name is not UTF-8: {key!r}.")
        return Item(printable(key), printable(key), refusal=refusal)
    empty = Refusal(Reason.EMPTY, "The file is empty.") if found.get("size") == 0 else None
    return Item(key, key, found.get("size"), _stamp(found), refusal=empty)


def _stamp(found: dict[str, Any]) -> str | None:
    return next((str(found[name]) for name in _STAMPS if found.get(name)), None)
