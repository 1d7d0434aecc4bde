"""Tables of the real pictures below a data folder: which picture is of what, said how, in which fold."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_TEST_PART = 0.3


def emoji_table(data: Path) -> Iterator[dict[str, Any]]:
    """Yield every drawing of every emoji. Instance: the concept, drawn by four vendors. Label: its group.

    Folds are of concepts. Concepts that a vendor draws like another one, byte by byte, are left out.
    """
    with (data / "emoji" / "concepts.jsonl").open(encoding="utf-8") as file:
        concepts = {concept["id"]: concept for concept in map(json.loads, file)}
    drawn: dict[tuple[str, str], list[str]] = defaultdict(list)
    pictures = sorted((data / "emoji" / "png").glob("*/*.png"))
    for picture in pictures:
        digest = hashlib.sha256(picture.read_bytes()).hexdigest()
        drawn[picture.parent.name, digest].append(picture.stem)
    alike = {concept for same in drawn.values() if len(same) > 1 for concept in same}
    kept = sorted(concepts.keys() - alike)
    test = set(np.random.default_rng(0).choice(kept, size=round(_TEST_PART * len(kept)), replace=False).tolist())
    for picture in pictures:
        if picture.stem in concepts and picture.stem not in alike:
            concept = concepts[picture.stem]
            name = concept["label"]["en"]
            yield {
                "path": str(picture),
                "instance": picture.stem,
                "label": concept["group"].replace("-", " "),
                "captions": [name, *(f"{tag}" for tag in concept["tags"].get("en", []))],
                "vendor": picture.parent.name,
                "fold": "test" if picture.stem in test else "train",
            }


def photo_table(data: Path) -> Iterator[dict[str, Any]]:
    """Yield the photographs of caltech101 and clothing10, in their own folds; instance and label are their class."""
    for name in ("caltech101", "clothing10"):
        with (data / "photos" / f"{name}.jsonl").open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                words = row["label"].replace("_", " ").lower()
                yield {
                    "path": str(data / row["file"]),
                    "instance": row["label"],
                    "label": words,
                    "captions": [f"a photo of a {words}", words],
                    "fold": row["fold"],
                }
