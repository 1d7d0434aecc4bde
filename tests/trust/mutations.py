"""Damage to a snapshot folder, drawn at random: of its files, of what they are, and of what the manifest says."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from indexer.snapshot import CHECKSUM, MANIFEST, checksum, file_facts
from tests.snapshots import replace

_PAGE = 4096

Mutation = Callable[[Path, Path, random.Random], set[str]]
"""Damages a snapshot folder, given another one of the same shape; returns the names of the files concerned."""


def copy(folder: Path, target: Path) -> Path:
    """Give a snapshot another folder, of links: a mutation breaks the link of what it changes."""
    target.mkdir(parents=True)
    for path in folder.iterdir():
        os.link(path, target / path.name)
    return target


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any], *, sealed: bool) -> None:
    """Change what a manifest says; a sealed one has a checksum that agrees."""
    facts = json.loads((folder / MANIFEST).read_bytes())
    old = facts.pop(CHECKSUM)
    change(facts)
    seal = checksum(facts) if sealed else old
    replace(folder / MANIFEST, (json.dumps({**facts, CHECKSUM: seal}, indent=2) + "\n").encode())


def unseal(folder: Path) -> None:
    """Take the checksum of a manifest away."""
    facts = json.loads((folder / MANIFEST).read_bytes())
    del facts[CHECKSUM]
    replace(folder / MANIFEST, json.dumps(facts).encode())


def forge(folder: Path, name: str, other: Path, *, sealed: bool) -> None:
    """Put in the file of another snapshot, and its hash into the manifest."""
    replace(folder / name, (other / name).read_bytes())
    facts = file_facts(folder / name).model_dump()
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: facts}), sealed=sealed)


def _name(folder: Path, rng: random.Random) -> str:
    return rng.choice(sorted(path.name for path in folder.iterdir()))


def _bytes(change: Callable[[bytearray, random.Random], Any]) -> Mutation:
    def mutation(folder: Path, _: Path, rng: random.Random) -> set[str]:
        name = _name(folder, rng)
        data = bytearray((folder / name).read_bytes())
        change(data, rng)
        replace(folder / name, bytes(data))
        return {name}

    return mutation


def _flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def _zero_page(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data)) // _PAGE * _PAGE
    data[start : start + _PAGE] = bytes(len(data[start : start + _PAGE]))


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _extend(data: bytearray, rng: random.Random) -> None:
    data += rng.randbytes(rng.randint(1, _PAGE))


def _swap(folder: Path, _: Path, rng: random.Random) -> set[str]:
    one, two = rng.sample(sorted(path.name for path in folder.iterdir()), 2)
    aside = folder.with_name("aside")
    (folder / one).rename(aside)
    (folder / two).rename(folder / one)
    aside.rename(folder / two)
    return {one, two}


def _of_another(folder: Path, other: Path, rng: random.Random) -> set[str]:
    name = _name(folder, rng)
    replace(folder / name, (other / name).read_bytes())
    return {name}


def _missing(folder: Path, _: Path, rng: random.Random) -> set[str]:
    name = _name(folder, rng)
    (folder / name).unlink()
    return {name}


def _extra(folder: Path, _: Path, rng: random.Random) -> set[str]:
    name = f"{_name(folder, rng)}.{rng.randrange(100)}"
    (folder / name).write_bytes(rng.randbytes(8))
    return {name}


def _unreadable(folder: Path, _: Path, rng: random.Random) -> set[str]:
    name = _name(folder, rng)
    replace(folder / name, (folder / name).read_bytes())  # or all the links would lose their mode
    (folder / name).chmod(0)
    return {name}


def _symlink(folder: Path, other: Path, rng: random.Random) -> set[str]:
    name = _name(folder, rng)
    same, aside = rng.random() < 0.5, folder.with_name(f"target-{rng.randrange(10**9)}")
    shutil.copy((folder if same else other) / name, aside)
    (folder / name).unlink()
    (folder / name).symlink_to(aside)
    return {name}


def _no_file(folder: Path, _: Path, rng: random.Random) -> set[str]:
    name = _name(folder, rng)
    (folder / name).unlink()
    os.mkfifo(folder / name) if rng.random() < 0.5 else (folder / name).mkdir()
    return {name}


def _field(folder: Path, _: Path, rng: random.Random) -> set[str]:
    edit_manifest(folder, lambda manifest: _change(manifest, rng), sealed=False)
    return {MANIFEST}


def _unsealed(folder: Path, _: Path, __: random.Random) -> set[str]:
    unseal(folder)
    return {MANIFEST}


def _change(facts: Any, rng: random.Random) -> None:
    """Change, or take away, one thing that a manifest says, however deep."""
    key = rng.choice(list(facts) if isinstance(facts, dict) else range(len(facts)))
    value = facts[key]
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        _change(value, rng)
    elif rng.random() < 0.15:
        del facts[key]
    else:
        facts[key] = _other(value, rng)


def _other(value: Any, rng: random.Random) -> Any:
    match value:
        case bool():
            return not value
        case int():
            return value + rng.choice([-1, 1, 1000])
        case float():
            return value * 1.01 + 1e-6
        case str() if value:
            at = rng.randrange(len(value))
            return value[:at] + rng.choice("0123456789abcdef/X") + value[at + 1 :]
    return rng.choice([0, "x", [1], {"x": 1}])


MUTATIONS: dict[str, Mutation] = {
    "a bit is flipped": _bytes(_flip),
    "a byte is set": _bytes(_set),
    "a page is zeroed": _bytes(_zero_page),
    "a file is cut": _bytes(_truncate),
    "a file is longer": _bytes(_extend),
    "two files are swapped": _swap,
    "a file is another snapshot's": _of_another,
    "a file is missing": _missing,
    "a file is too many": _extra,
    "a file may not be read": _unreadable,
    "a file is a link": _symlink,
    "a file is a pipe or a folder": _no_file,
    "the manifest says something else": _field,
    "the manifest has no checksum": _unsealed,
}
