"""API keys: a file that knows them by their digests, and what each may do.

A key is `kindred_<id>_<secret>`, of 12 hexadecimal digits and 256 random bits. A secret of so many bits cannot be
guessed from its digest, so that one fast hash is enough; the file would not let anybody in.
"""

import fcntl
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from indexer.durable import write_whole
from indexer.errors import KindredError

_KEY = re.compile(r"kindred_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


class BadKeyFile(KindredError):
    """The file of API keys cannot be used."""


class KeyNotFound(KindredError):
    """No API key has that id."""


class Scope(StrEnum):
    """What a key may do."""

    SEARCH = "search"
    ADMIN = "admin"
    METRICS = "metrics"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Secret(_Strict):
    """The digest of a secret, and until when it is good: for ever, unless it was replaced."""

    sha256: str
    until: AwareDatetime | None = None


class Key(_Strict):
    """A key as the file has it.

    Attributes:
        id: its public part.
        name: whose it is, for people.
        scopes: what it may do.
        created: when.
        expires: from when it is good for nothing; never, if None.
        secrets: of which any will do; the newest comes last.
    """

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created: AwareDatetime
    expires: AwareDatetime | None
    secrets: tuple[Secret, ...]

    def opens(self, secret: str) -> bool:
        """Tell whether a secret is this key's, now."""
        now, given = datetime.now(UTC), digest(secret)
        # All are compared, each in constant time: the time of an answer tells nothing of how near a guess was.
        right = [each for each in self.secrets if hmac.compare_digest(given, each.sha256)]
        return any(_lasts(each.until, now) for each in right) and _lasts(self.expires, now)


class KeyFile(_Strict):
    """All keys."""

    keys: tuple[Key, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of keys.

        Raises:
            BadKeyFile: it is not there, cannot be read, or is not one.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise BadKeyFile(f"There is no file of keys {path}; `kindred keys create` makes one.") from error
        except OSError as error:
            raise BadKeyFile(f"The file of keys {path} cannot be read: {error.strerror}.") from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise BadKeyFile(f"{path} is not a file that `kindred keys` has written: {first['msg']}.") from error

    def find(self, given: str) -> Key | None:
        """Return the key that was given, if it is one of these and good now."""
        match = _KEY.fullmatch(given)
        if match is None:
            return None
        key = next((key for key in self.keys if key.id == match[1]), None)
        return key if key is not None and key.opens(match[2]) else None


def digest(secret: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create(path: Path, name: str, scopes: tuple[Scope, ...], life: timedelta | None) -> str:
    """Add a key to a file, which is made if there is none; return the key, which is kept nowhere.

    Args:
        path: the file.
        name: whose the key is.
        scopes: what it may do.
        life: how long it is good; for ever, if None.
    """
    now, secret = datetime.now(UTC), secrets.token_urlsafe(32)
    expires = None if life is None else now + life
    key_id = secrets.token_hex(6)
    key = Key(
        id=key_id, name=name, scopes=scopes, created=now, expires=expires, secrets=(Secret(sha256=digest(secret)),)
    )
    with _changing(path):
        _write(path, (*(KeyFile.read(path).keys if path.exists() else ()), key))
    return _spelled(key_id, secret)


def rotate(path: Path, key_id: str, grace: timedelta) -> str:
    """Give a key another secret; return the key, of which the former secret is good for `grace` more.

    Raises:
        KeyNotFound: there is no such key.
    """
    now, secret = datetime.now(UTC), secrets.token_urlsafe(32)
    with _changing(path):
        keys = KeyFile.read(path).keys
        found = _of(keys, key_id)
        last = now + grace
        kept = (
            Secret(sha256=each.sha256, until=min(each.until or last, last))
            for each in found.secrets
            if _lasts(each.until, now)
        )
        rotated = found.model_copy(update={"secrets": (*kept, Secret(sha256=digest(secret)))})
        _write(path, tuple(rotated if key is found else key for key in keys))
    return _spelled(key_id, secret)


def revoke(path: Path, key_id: str) -> None:
    """Take a key out of a file.

    Raises:
        KeyNotFound: there is no such key.
    """
    with _changing(path):
        keys = KeyFile.read(path).keys
        found = _of(keys, key_id)
        _write(path, tuple(key for key in keys if key is not found))


def _lasts(until: datetime | None, now: datetime) -> bool:
    return until is None or now < until


def _of(keys: tuple[Key, ...], key_id: str) -> Key:
    found = next((key for key in keys if key.id == key_id), None)
    if found is None:
        raise KeyNotFound(f"There is no key {key_id}; `kindred keys list` shows the ids of all.")
    return found


def _spelled(key_id: str, secret: str) -> str:
    return f"kindred_{key_id}_{secret}"


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """Let one process at a time change the files of a folder: of two, the later one would undo the other's change."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(path: Path, keys: tuple[Key, ...]) -> None:
    before = os.umask(0o077)  # a file for its owner alone, from its first byte on
    try:
        write_whole(path, KeyFile(keys=keys).model_dump_json(indent=2).encode())
    finally:
        os.umask(before)
