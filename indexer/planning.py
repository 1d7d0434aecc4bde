"""make_plan(): what the sources list, what is said of it, and what an earlier snapshot has of it."""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from indexer.encoder import EncoderSpec
from indexer.errors import BuildError, ImageError, Reason
from indexer.images import DecodePolicy, content_hash
from indexer.labels import PARENT, Description, read_descriptions
from indexer.plan import Hash, Plan
from indexer.shards import WorkItem
from indexer.skipped import read_skipped
from indexer.snapshot import CATALOG, SKIPPED, BuildOptions, Snapshot
from indexer.sources.source import Item, Source

# What decides an embedding besides picture and encoder; another number once pictures are prepared in another way.
_PREPARATION = 1
_READERS = 8


def make_plan(
    plan: Plan,
    options: BuildOptions,
    sources: Sequence[Source],
    spec: EncoderSpec,
    policy: DecodePolicy,
    earlier: Snapshot | None,
    shard_size: int,
    retry: frozenset[Reason],
) -> None:
    """Work out what is to be done.

    Raises:
        BuildError: a source or the labels are not usable, or two pictures have one name.
    """
    root = Path(options.sources[0])
    table = None if options.labels in {None, PARENT} else Path(str(options.labels))
    for number, source in enumerate(sources):
        plan.add(number, _without(table, root, source.items()), labels=options.labels)
    if table:
        _describe(plan, table, root)
    if earlier:
        local = [number for number, source in enumerate(sources) if not source.remote]
        if earlier.manifest.limits == policy:
            skips = read_skipped(earlier.folder / SKIPPED)
            plan.remember_skips(skip for skip in skips if skip.lasting and skip.picture.reason not in retry)
        plan.compare(
            earlier.folder / CATALOG, narrower(earlier.manifest.limits, policy), local, _hasher(sources, policy)
        )
    # The sources too: a picture without a stamp is told from one of another source by nothing else.
    facts = [_PREPARATION, options.sources, spec.image, spec.precision, policy.max_bytes, policy.max_pixels]
    plan.cut(shard_size, json.dumps(facts))


def narrower(one: DecodePolicy, other: DecodePolicy) -> DecodePolicy:
    """Return the limits of both: a picture within them is decoded alike under either."""
    return DecodePolicy(min(one.max_bytes, other.max_bytes), min(one.max_pixels, other.max_pixels))


def _without(table: Path | None, root: Path, items: Iterable[Item]) -> Iterator[Item]:
    """Leave the label table out of the pictures that it lies among."""
    for item in items:
        if table is None or root / item.place != table:
            yield item


def _describe(plan: Plan, table: Path, root: Path) -> None:
    first: list[str] = []

    def rows() -> Iterator[tuple[str, Description]]:
        for key, description in read_descriptions(table, root):
            if not first:
                first.append(key)
            yield key, description

    if not plan.describe(rows()):
        raise BuildError(
            f"{table} names no picture of {root}. Its paths must be relative to that folder, or absolute; "
            f"its first is {first[0] if first else 'none'!r}."
        )


def _hasher(sources: Sequence[Source], policy: DecodePolicy) -> Hash:
    """Return what reads pictures and hashes them, several at a time."""

    def digest(item: WorkItem) -> str | None:
        try:
            return content_hash(sources[item.source].read(item.place, policy))
        except ImageError:
            return None  # the decoding processes will meet it again, and say why

    def hashes(items: Sequence[WorkItem]) -> list[str | None]:
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(digest, items))

    return hashes
