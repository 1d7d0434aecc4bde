"""What the query language finds, on the demo collection, whose truth is known.

`python -m tests.bench.query_language SNAPSHOTS`: over a snapshot of the demo collection (`make demo` builds one),
through the HTTP API in process. Prints a table in Markdown.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from fastapi.testclient import TestClient

from indexer.catalog import ImageRecord
from indexer.demo import COLOURS
from indexer.recall import QueryKind
from indexer.snapshot import Snapshot
from indexer.store import SnapshotStore
from service.app import create_app
from service.settings import ServiceSettings
from tests.bench.tables import grid

_CASES = 200
_COVERAGE = 0.9


def main(snapshots: Annotated[Path, typer.Argument(help="With a snapshot of the demo collection.")]) -> None:
    """Measure, and print a table."""
    store = SnapshotStore(snapshots)
    snapshot = store.open(store.published())
    settings = ServiceSettings.model_validate({"snapshots": snapshots, "backend": "torch"})
    with TestClient(create_app(settings)) as client:
        rows = [
            (
                "like this one, but blue: another colour of the kind in the first 5",
                f"{_but_blue(client, snapshot):.1%}",
            ),
            ("a red star, but no moon: of the first ten, red stars", f"{_avoiding(client, snapshot):.1%}"),
            *_suppressed(client, snapshot),
        ]
    print(grid(("what", "figure"), [*rows, *_learnt(snapshot)]))


def _but_blue(client: TestClient, snapshot: Snapshot) -> float:
    """Return the share of pictures that are found, when asked for in another colour that there is, in the first 5."""
    colours: dict[str, set[str]] = {}
    for image in snapshot.catalog.rows(range(len(snapshot))):
        colours.setdefault(image.metadata["kind"], set()).add(image.metadata["colour"])
    random, right = np.random.default_rng(0), 0
    for image in _some(snapshot):
        own, kind = image.metadata["colour"], image.metadata["kind"]
        wanted = str(random.choice(sorted(colours[kind] - {own})))
        found = _results(client, {"query": f"@{image.id} + {wanted} - {own}", "limit": 5})
        right += any((each["kind"], each["colour"]) == (kind, wanted) for each in found)
    return right / _CASES


def _avoiding(client: TestClient, snapshot: Snapshot) -> float:
    """Return how many of the first ten are what a text asks for that says besides what is to be avoided."""
    kinds = sorted({image.metadata["kind"] for image in snapshot.catalog.rows(range(len(snapshot)))})
    random, right = np.random.default_rng(0), 0
    for image in _some(snapshot):
        own = image.metadata["colour"], image.metadata["kind"]
        other = random.choice([kind for kind in kinds if kind != own[1]])
        found = _results(client, {"query": f"a {own[0]} {own[1]} - a {other}"})
        right += sum((each["colour"], each["kind"]) == own for each in found)
    return right / _CASES / 10


def _suppressed(client: TestClient, snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """Return how alike the ten nearest are to the query in colour, and those of other colours in kind."""
    for name, query in (("a picture", "@{id}"), ("a text, such as 'a red star'", "a {colour} {kind}")):
        for told, suppressed in (("nothing", []), ("colours", [f"a {colour} thing" for colour in COLOURS])):
            same_colour = same_kind = 0.0
            for image in _some(snapshot):
                colour, kind = image.metadata["colour"], image.metadata["kind"]
                others = {"must_not": [{"key": "metadata.colour", "match": {"value": colour}}]}
                body = {"query": query.format(id=image.id, colour=colour, kind=kind), "suppress": suppressed}
                found = [each for each in _results(client, {**body, "limit": 11}) if each["id"] != image.id]
                same_colour += sum(each["colour"] == colour for each in found[:10]) / 10
                found = _results(client, {**body, "limit": 10, "filter": others})
                same_kind += sum(each["kind"] == kind for each in found) / 10
            yield (
                f"nearest to {name}, {told} suppressed: of its colour; those of other colours of its kind",
                f"{same_colour / _CASES:.1%}; {same_kind / _CASES:.1%}",
            )


def _learnt(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    learnt = snapshot.manifest.relevance
    if learnt is None:
        return
    for kind in QueryKind:
        calibration = learnt.of(kind)
        if calibration is not None:
            told = f"{calibration.expected_calibration_error:.3f}"
            yield f"calibration error of the relevance of {kind} queries, on queries not learnt from", told
    if learnt.votes is not None:
        every, some = 1 - learnt.votes.accuracy, 1 - learnt.votes.accuracy_at(_COVERAGE)
        yield f"wrong labels; at {_COVERAGE:.0%} coverage", f"{every:.1%}; {some:.1%} ({some / every - 1:+.0%})"


def _some(snapshot: Snapshot) -> list[ImageRecord]:
    rows = np.random.default_rng(1).choice(len(snapshot), _CASES, replace=False)
    return snapshot.catalog.rows(rows.tolist())


def _results(client: TestClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = client.post("/v1/search", json=body)
    response.raise_for_status()
    return [{**result["metadata"], "id": result["id"]} for result in response.json()["results"]]


if __name__ == "__main__":
    typer.run(main)
