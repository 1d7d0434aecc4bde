"""Near-duplicates: pictures that show the same, resized, recompressed, cropped a little, or slightly brighter."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from indexer.encoder import Embeddings

# Chosen on 2,395 photographs of 111 classes with the demo model. A copy at half size is found always, one at JPEG
# quality 50 in 99.7 %, 10 % brighter in 98.7 %, 3 % cropped in 92 %, smaller, cropped, brighter and recompressed in
# 94 %. Of the 2.9 million pairs of photographs 8 were called near-duplicates, and are. A distance of 10 finds 1 % more,
# and takes two different pairs of shorts for one.
SIMILARITY = 0.95
DISTANCE = 8

# Three bands of 21 or 22 bits: buckets of a few rows in a collection of ten million.
_BANDS = 3
# Pairs, and rows, looked at together: memory, in 30 bytes or so of each.
_BLOCK = 1 << 21
# Cosines are compared to this many decimals: what is beyond differs with the order of additions.
_COSINE_DECIMALS = 6
# Where so many unlike pictures share one hash, it says nothing of them, and comparing all would take for ever.
_MOST_LEADERS = 256


def group_near_duplicates(
    hashes: NDArray[np.uint64], embeddings: Embeddings, *, similarity: float = SIMILARITY, distance: int = DISTANCE
) -> NDArray[np.int64]:
    """Group pictures that show the same.

    Two pictures are near-duplicates where their cosine is at least `similarity` and their perceptual hashes differ in
    at most `distance` bits. In the order of the rows, a picture joins the earliest first picture of a group that it is
    a near-duplicate of, or may become the first of one itself. So every member shows the same as the first, and a chain
    of slightly changed pictures does not join unlike ends, as connected components would.

    Where 256 pictures of one hash are near-duplicates of none, later ones of this hash are compared with these alone.

    Args:
        hashes: perceptual hashes, shape (n,).
        embeddings: unit rows, shape (n, dim), which may be memory-mapped: rows are read where hashes are near.
        similarity: least cosine, from -1 to 1.
        distance: most bits, from 0 to 64. Time grows steeply with it: up to 12 or so.

    Returns:
        The row of the first picture of each row's group, its own for the first itself, and -1 where it is in none.
        Shape (n,). Memory is some 60 bytes a row, and 40 for every two hashes that are near.
    """
    distinct, which, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    near, starts = _neighbours(distinct, distance)
    first = np.full(len(hashes), -1, np.int64)
    leaders: dict[int, list[int]] = defaultdict(list)
    rows = np.asarray(embeddings)  # a plain view: to index a memmap itself is several times slower
    for row in np.flatnonzero(((counts > 1) | (np.diff(starts) > 0))[which]).tolist():
        own = int(which[row])
        around = (own, *near[starts[own] : starts[own + 1]].tolist())
        candidates = sorted(leader for each in around if each in leaders for leader in leaders[each])
        cosines = rows[candidates].astype(np.float64) @ rows[row].astype(np.float64)
        matches = np.flatnonzero(np.round(cosines, _COSINE_DECIMALS) >= similarity)
        if len(matches):
            leader = candidates[matches[0]]
            first[[leader, row]] = leader
        elif len(leaders[own]) < _MOST_LEADERS:
            leaders[own].append(row)
    return first


def _neighbours(hashes: NDArray[np.uint64], distance: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the places of all hashes near to each of n distinct ones, one after the other, and n + 1 offsets."""
    pairs = [np.empty((2, 0), np.int32), *_near_pairs(hashes, distance)]
    one, other = np.concatenate(pairs, axis=1)
    source, target = np.concatenate([one, other]), np.concatenate([other, one])
    order = np.argsort(source, kind="stable")
    starts = np.searchsorted(source[order], np.arange(len(hashes) + 1))
    return target[order], starts


def _near_pairs(hashes: NDArray[np.uint64], distance: int) -> Iterator[NDArray[np.int32]]:
    """Yield all pairs of places whose distinct hashes differ in at most `distance` bits, each once, in shape (2, k).

    Multi-index hashing (Norouzi, Punjani & Fleet, 2012): of hashes that differ in few bits, some band differs in its
    share of them or fewer, so hashes are sorted by one band after the other and looked up by all keys that are so near.
    """
    # Bands interleave, since neighbouring bits of a picture's hash go together, and would crowd a few buckets.
    bands = [sum(1 << bit for bit in range(band, 64, _BANDS)) for band in range(_BANDS)]
    # If each band differed in one bit more than its share, `distance` + 1 bits would; -1: the other bands suffice.
    shares = [(distance + 1 + band) // _BANDS - 1 for band in range(_BANDS)]
    for band, share in enumerate(shares):
        keys = _bits(hashes, bands[band])
        order = np.argsort(keys, kind="stable").astype(np.int32)
        ordered = hashes[order]
        for left, right in _candidates(keys[order], bands[band].bit_count(), share):
            differences = ordered[left] ^ ordered[right]
            found = np.bitwise_count(differences) <= distance
            # What an earlier band has found is not found again.
            for earlier in range(band):
                found &= np.bitwise_count(differences & np.uint64(bands[earlier])) > shares[earlier]
            yield np.stack([order[left[found]], order[right[found]]])


def _bits(hashes: NDArray[np.uint64], mask: int) -> NDArray[np.int32]:
    """Return the bits of a mask, moved together, shape (n,)."""
    keys = np.zeros(len(hashes), np.int32)
    places = [bit for bit in range(64) if mask >> bit & 1]
    for place, bit in enumerate(places):
        keys |= (hashes >> np.uint64(bit) & np.uint64(1)).astype(np.int32) << np.int32(place)
    return keys


def _candidates(
    keys: NDArray[np.int32], width: int, radius: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield all pairs of places whose sorted keys, of `width` bits, differ in at most `radius` bits, each once."""
    ends = np.cumsum(np.bincount(keys, minlength=1 << width))
    for flips in range(radius + 1):
        for bits in combinations(range(width), flips):
            mask = np.int32(sum(1 << bit for bit in bits))
            for start in range(0, len(keys), _BLOCK):
                part = keys[start : start + _BLOCK]
                places = np.arange(start, start + len(part))
                partners = part ^ mask
                # Of two different keys the smaller one finds the other; of equal ones, each finds those after it.
                begin = np.where(partners > 0, ends[partners - 1], 0) if flips else places + 1
                counts = np.where(partners >= part, ends[partners] - begin, 0)
                yield from _expand(places, begin, counts)


def _expand(
    places: NDArray[np.int64], begin: NDArray[np.int64], counts: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield each place with every place from its `begin` on, `counts` of them, in blocks of bounded size."""
    used = np.flatnonzero(counts)
    places, begin, counts = places[used], begin[used], counts[used]
    totals = np.cumsum(counts)
    cuts = np.searchsorted(totals, np.arange(_BLOCK, totals[-1] if len(totals) else 0, _BLOCK))
    for some in np.split(np.arange(len(used)), cuts):
        left = np.repeat(places[some], counts[some])
        offsets = np.arange(len(left)) - np.repeat(np.cumsum(counts[some]) - counts[some], counts[some])
        yield left, offsets + np.repeat(begin[some], counts[some])
