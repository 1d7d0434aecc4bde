"""`kindred keys`: API keys made, listed, replaced and revoked, in the file that KINDRED_KEYS names."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from service import keys
from service.keys import KeyFile, Scope

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="API keys, in the file that KINDRED_KEYS names.")


def _duration(given: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([smhd])", given)
    if match is None:
        raise typer.BadParameter(f"'{given}' is no duration: write 90d, 12h, 30m or 10s.")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


File = Annotated[Path, typer.Option("--file", envvar="KINDRED_KEYS", dir_okay=False, help="File of the keys.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="Id of a key, as `kindred keys list` shows it.")]


@app.command()
def create(
    file: File,
    name: Annotated[str, typer.Option(help="Whose key it is.")],
    scope: Annotated[list[Scope], typer.Option(help="What it may do; may be given several times.")],
    expires: Annotated[
        timedelta | None,
        typer.Option(parser=_duration, metavar="90d", help="How long it is good; for ever if left out."),
    ] = None,
) -> None:
    """Make a key, and print it: it is shown this once."""
    typer.echo(keys.create(file, name, tuple(dict.fromkeys(scope)), expires))


@app.command(name="list")
def list_(file: File) -> None:
    """List all keys; their secrets are kept nowhere."""
    for key in KeyFile.read(file).keys:
        until = "for ever" if key.expires is None else f"until {key.expires:%Y-%m-%d %H:%M} UTC"
        ended = " (expired)" if key.expires is not None and key.expires <= datetime.now(UTC) else ""
        typer.echo(f"{key.id}  {key.name}  {','.join(key.scopes)}  {until}{ended}")


@app.command()
def revoke(key_id: Id, file: File) -> None:
    """Revoke a key; a running service refuses it within a second."""
    keys.revoke(file, key_id)


@app.command()
def rotate(
    key_id: Id,
    file: File,
    grace: Annotated[
        timedelta, typer.Option(parser=_duration, metavar="7d", help="How long the former secret is good besides.")
    ] = "7d",  # type: ignore[assignment] # the parser's
) -> None:
    """Give a key another secret, and print the key; the former one is good for a while."""
    typer.echo(keys.rotate(file, key_id, grace))
