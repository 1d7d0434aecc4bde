"""Search a collection of pictures, by a running service or straight from a folder of snapshots.

Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

from indexer.errors import KindredError, one_line_errors
from service import keys_command, terminal
from service.client import AsyncClient
from service.client_options import SearchOptions
from service.schemas.classify import ClassifyResponse
from service.schemas.search import SearchResponse

# Of those found, so many are shown; a terminal would scroll the others away.
_MOST_PICTURES = 40

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=__doc__,
)
app.add_typer(keys_command.app, name="keys")

Url = Annotated[str | None, typer.Option(help="Address of a running service, such as http://localhost:8000.")]
Snapshots = Annotated[
    Path | None,
    typer.Option(help="Folder of snapshots to search without a service, instead of KINDRED_SNAPSHOTS."),
]
Key = Annotated[
    str | None, typer.Option(envvar="KINDRED_KEY", help="API key for --url; better in the environment than here.")
]
FilterJson = Annotated[
    str | None, typer.Option("--filter", metavar="JSON", help="Which pictures, in the grammar of the API's filters.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer of the API as JSON, and nothing else.")]


@app.command()
def search(
    text: Annotated[
        str | None, typer.Argument(help="What to look for; in short: '2:a golden retriever + @ID - a fruit'.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A picture that the results shall be like.")
    ] = None,
    item: Annotated[
        str | None, typer.Option("--id", help="Id of a picture of the index that the results shall be like.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many results at most.")] = 10,
    wanted: FilterJson = None,
    min_relevance: Annotated[float | None, typer.Option(min=0, max=1, help="Least relevance of a result.")] = None,
    diversity: Annotated[float, typer.Option(min=0, max=1, help="How much the results shall differ.")] = 0,
    suppress: Annotated[
        list[str] | None,
        typer.Option(help="A text that shall not matter, such as a colour; may be given several times."),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every picture.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say of each result what carried it.")] = False,
    snapshots: Snapshots = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
    thumbnails: Annotated[bool, typer.Option(help="Show pictures, where the terminal can.")] = True,
) -> None:
    """Find pictures by a text, a picture, a picture of the index, or all of these at once."""
    if text is None and image is None and item is None:
        raise typer.BadParameter("Give a text, --image or --id.", param_hint="TEXT")
    options = SearchOptions(
        query=text,
        image=image,
        id=item,
        limit=limit,
        filter=_read(wanted),
        min_relevance=min_relevance,
        diversity=diversity,
        suppress=suppress or (),
        exact=exact,
        explain=explain,
    )

    async def ask() -> tuple[SearchResponse, list[bytes | None]]:
        async with _service(url, snapshots, key) as service:
            answer = (await service.search(**options)).response
            drawn = thumbnails and not as_json and terminal.shows_pictures()
            shown = answer.results[:_MOST_PICTURES] if drawn else []
            return answer, await asyncio.gather(*(_thumbnail(service, each.id) for each in shown))

    answer, pictures = asyncio.run(ask())
    if as_json:
        typer.echo(answer.model_dump_json(indent=2))
        return
    if pictures:
        terminal.show_pictures(answer.results[: len(pictures)], pictures)
    if answer.results:
        terminal.show_results(answer.results)
    for note in _notes(answer):
        typer.echo(note, err=True)


@app.command()
def classify(
    picture: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A picture to classify.")],
    k: Annotated[int, typer.Option(min=1, max=1_000, help="How many labelled neighbours vote.")] = 21,
    min_confidence: Annotated[float, typer.Option(min=0, max=1, help="Confidence under which no label is given.")] = 0,
    wanted: FilterJson = None,
    snapshots: Snapshots = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a picture shows, by the votes of its labelled neighbours."""

    async def ask() -> ClassifyResponse:
        async with _service(url, snapshots, key) as service:
            return await service.classify(image=picture, k=k, min_confidence=min_confidence, filter=_read(wanted))

    answer = asyncio.run(ask())
    if as_json:
        typer.echo(answer.model_dump_json(indent=2))
        return
    terminal.show_classes(answer)
    if answer.abstained:
        typer.echo(f"No label: the confidence, {answer.confidence or 0:.2f}, is below the least one.", err=True)


@app.command()
def doctor(
    snapshots: Snapshots = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON, and nothing else.")] = False,
) -> None:
    """Check a deployment by its settings and its folder of snapshots; exit with 1 if something must be mended."""
    # The service itself, which a client of another one does without.
    from service.doctor import State, examine  # noqa: PLC0415

    findings = list(examine(os.environ, snapshots))
    if as_json:
        typer.echo(json.dumps([finding.row() for finding in findings], indent=2))
    else:
        terminal.show_findings([finding.row() for finding in findings])
    raise typer.Exit(any(finding.state is State.FAIL for finding in findings))


def main() -> None:
    """Run the command line."""
    with one_line_errors():
        app()


def _service(url: str | None, snapshots: Path | None, key: str | None) -> AbstractAsyncContextManager[AsyncClient]:
    if url is not None and snapshots is not None:
        raise typer.BadParameter("Give --url or --snapshots, not both.", param_hint="--url")
    if url is not None:
        return AsyncClient(url, key=key)
    # These load the service itself, which a client of another one does without.
    from service.in_process import in_process  # noqa: PLC0415
    from service.settings import ServiceSettings  # noqa: PLC0415
    from service.telemetry import silence_logs  # noqa: PLC0415

    silence_logs()
    settings = ServiceSettings()
    return in_process(settings.model_copy(update={"snapshots": snapshots} if snapshots else {}))


async def _thumbnail(service: AsyncClient, item_id: str) -> bytes | None:
    try:
        return await service.thumbnail(item_id)
    except KindredError:
        return None  # the table tells of the picture all the same


def _read(wanted: str | None) -> dict[str, Any] | None:
    try:
        return None if wanted is None else json.loads(wanted)
    except ValueError as error:
        raise typer.BadParameter(f"This is not JSON: {error}.", param_hint="--filter") from error


def _notes(answer: SearchResponse) -> Iterator[str]:
    yield from answer.notes
    if answer.no_confident_match:
        yield f"No confident match: {answer.hidden.cutoff:,} of the nearest pictures are below the cut-off."
    elif not answer.results:
        yield f"No picture was found; the filter leaves out {answer.hidden.filter:,} of {answer.index.count:,}."


if __name__ == "__main__":
    main()
