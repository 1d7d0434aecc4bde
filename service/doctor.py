"""`kindred doctor`: whether a deployment is in order, without a running service."""

import difflib
import math
import os
import platform
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import ValidationError

from indexer.encoder import load_encoder, torch_build
from indexer.errors import BuildRunning, KindredError
from indexer.index import faiss_build
from indexer.snapshot import Manifest
from indexer.store import SnapshotStore
from service.keys import KeyFile
from service.settings import ServiceSettings

_PREFIX = "KINDRED_"
# Read by the command `kindred` itself.
_OTHERS = frozenset({"key"})
_PACKAGES = ("kindred", "torch", "open_clip_torch", "numpy", "pillow", "fastapi", "starlette", "pydantic", "uvicorn")
# What a key of 16 random letters and digits has, in bits; a sentence or a repeated word has less than its length says.
_ENOUGH_BITS = 80
_OPEN_HOSTS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - to warn of them
# Left by builds that died, and by snapshots that were being removed.
_LEFTOVERS = ".building-*"


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """What came of one check.

    Attributes:
        check: what was looked at.
        state: whether it is in order; after `warn` the service runs, after `fail` it cannot do what it is for.
        found: a sentence or a few words.
        remedy: what to do, where there is something.
    """

    check: str
    state: State
    found: str
    remedy: str = ""

    def row(self) -> dict[str, str]:
        """Return it as JSON has it."""
        return asdict(self)


def examine(environment: Mapping[str, str], snapshots: Path | None = None) -> Iterator[Finding]:
    """Check a deployment, as the settings in an environment describe it.

    Args:
        environment: looked through for misspelt settings.
        snapshots: folder of snapshots, instead of that of the settings.
    """
    yield from _machine()
    yield from _variables(environment)
    try:
        settings = ServiceSettings(**({"snapshots": snapshots} if snapshots else {}))  # type: ignore[arg-type]
    except ValidationError as error:
        for each in error.errors(include_url=False, include_input=False):
            name = f"{_PREFIX}{'.'.join(map(str, each['loc']))}".upper()
            yield Finding("settings", State.FAIL, f"{name}: {each['msg']}", "Correct it: the service does not start.")
        return
    yield from _keys(settings)
    yield from _exposure(settings)
    yield from _roots(settings)
    yield from _snapshots(settings)


def _machine() -> Iterator[Finding]:
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            yield Finding(
                "packages", State.FAIL, f"{package} is not installed.", "Install kindred[cpu] or kindred[gpu]."
            )
    yield Finding("python", State.OK, f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores")
    yield Finding("packages", State.OK, ", ".join(versions))
    build = faiss_build()
    slow = platform.machine() == "x86_64" and "AVX" not in build
    remedy = (
        "The processor, or its virtual machine, offers no AVX2: searches take several times as long." if slow else ""
    )
    yield Finding("faiss", State.WARN if slow else State.OK, build, remedy)
    yield Finding("torch", State.OK, torch_build())


def _variables(environment: Mapping[str, str]) -> Iterator[Finding]:
    known = {*ServiceSettings.model_fields, *_OTHERS}
    strange = [name for name in environment if name.startswith(_PREFIX) and name[len(_PREFIX) :].lower() not in known]
    for name in sorted(strange):
        near = difflib.get_close_matches(name[len(_PREFIX) :].lower(), known, 1)
        remedy = (
            f"Did you mean {_PREFIX}{near[0].upper()}?" if near else "Remove it, or look for its name in README.md."
        )
        yield Finding("settings", State.WARN, f"{name} is no setting, and nothing heeds it.", remedy)
    if not strange:
        yield Finding("settings", State.OK, "every KINDRED_ variable is a setting")


def _keys(settings: ServiceSettings) -> Iterator[Finding]:
    if settings.admin_key is not None:
        bits = _bits(settings.admin_key.get_secret_value())
        weak = bits < _ENOUGH_BITS
        remedy = "Take a random one: openssl rand -base64 32, or a key of `kindred keys create`." if weak else ""
        found = f"the admin key is worth about {bits:.0f} bits at most"
        yield Finding("admin key", State.WARN if weak else State.OK, found, remedy)
    if settings.keys is None:
        return
    try:
        keys = KeyFile.read(settings.keys).keys
    except KindredError as error:
        yield Finding("keys", State.FAIL, str(error), "Write it with `kindred keys create`.")
        return
    if stat.S_IMODE(settings.keys.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        yield Finding("keys", State.WARN, f"Others may read {settings.keys}.", f"chmod 600 {settings.keys}")
    now = datetime.now(UTC)
    expired = [key.name for key in keys if key.expires is not None and key.expires <= now]
    remedy = f"Expired: {', '.join(expired)}. Revoke them, or make new ones." if expired else ""
    yield Finding("keys", State.WARN if expired else State.OK, f"{len(keys)} keys, {len(expired)} expired", remedy)


def _bits(key: str) -> float:
    """Return the entropy of a key, in bits, had its characters been drawn as often as they occur in it."""
    counts = Counter(key)
    return -sum(count * math.log2(count / len(key)) for count in counts.values())


def _exposure(settings: ServiceSettings) -> Iterator[Finding]:
    if settings.host in _OPEN_HOSTS and settings.keys is None:
        remedy = "Set KINDRED_KEYS, or see that only a proxy which asks for keys can reach the port."
        yield Finding("address", State.WARN, f"All who reach {settings.host}:{settings.port} may search.", remedy)
    else:
        yield Finding("address", State.OK, f"{settings.host}:{settings.port}")
    cores = os.cpu_count() or 1
    if settings.threads * settings.service_workers > cores:
        found = f"{settings.service_workers} workers of {settings.threads} threads each share {cores} cores."
        yield Finding(
            "threads", State.WARN, found, f"Set KINDRED_THREADS to {max(cores // settings.service_workers, 1)}."
        )


def _roots(settings: ServiceSettings) -> Iterator[Finding]:
    for root in settings.roots:
        if "://" in root:
            continue
        there = Path(root).is_dir()
        state, found = (State.OK, "is there") if there else (State.FAIL, "is no folder that can be seen from here")
        yield Finding("roots", state, f"{root} {found}", "" if there else "Mount it, or take it out of KINDRED_ROOTS.")


def _snapshots(settings: ServiceSettings) -> Iterator[Finding]:
    store = SnapshotStore(settings.snapshots)
    try:
        current = store.current()
        if current is None:
            remedy = "Build one: kindred-indexer build FOLDER."
            yield Finding("snapshot", State.FAIL, f"Nothing is published in {settings.snapshots}.", remedy)
            return
        snapshot = store.open(current)
        snapshot.check_canaries()
    except KindredError as error:
        remedy = "Go back with `kindred-indexer rollback`, restore it from a copy, or build it anew."
        yield Finding("snapshot", State.FAIL, str(error), remedy)
        return
    manifest = snapshot.manifest
    age = datetime.now(UTC) - manifest.created_at
    found = f"{current}: {manifest.count:,} pictures, {manifest.factory}, verified, built {age.days} days ago"
    yield Finding("snapshot", State.OK, found)
    yield from _room(settings.snapshots, manifest)
    yield from _encoder(settings, manifest)


def _room(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    wanted, free = sum(facts.size for facts in manifest.files.values()), shutil.disk_usage(folder).free
    tight = free < wanted
    remedy = (
        "Free some, or run `kindred-indexer prune`: a reindex writes a whole snapshot beside this one." if tight else ""
    )
    found = f"{free / 2**20:,.0f} MiB free, a snapshot takes {wanted / 2**20:,.0f} MiB"
    yield Finding("disk", State.WARN if tight else State.OK, found, remedy)
    if not os.access(folder, os.W_OK):
        yield Finding("folder", State.OK, f"{folder} is read-only here: this service can build and publish nothing")
        return
    try:
        with SnapshotStore(folder).lock():
            left = sorted(path.name for path in folder.glob(_LEFTOVERS))
    except BuildRunning:
        yield Finding("folder", State.OK, "a build is running")
        return
    found = f"left by builds that were stopped: {', '.join(left)}" if left else "no leftovers"
    yield Finding("folder", State.WARN if left else State.OK, found, "The next build removes them." if left else "")


def _encoder(settings: ServiceSettings, manifest: Manifest) -> Iterator[Finding]:
    spec = manifest.encoder
    try:
        encoder = load_encoder(spec.name, device=settings.device, threads=settings.threads or 1)
    except KindredError as error:
        remedy = (
            "Give the model that the snapshot was built with; one of a hub wants the hub, or a cache that holds it."
        )
        yield Finding("encoder", State.FAIL, str(error), remedy)
        return
    if encoder.spec.image != spec.image:
        found = f"The image half of {spec.name} is no longer the one that made the embeddings."
        yield Finding("encoder", State.FAIL, found, "Restore the weights, or reindex.")
    elif encoder.spec.text != spec.text:
        found = f"The text half of {spec.name} is no longer the one of the build."
        yield Finding("encoder", State.WARN, found, "Reindex: relevance was learnt with the other.")
    else:
        yield Finding("encoder", State.OK, f"{spec.name}, {encoder.spec.precision}")
