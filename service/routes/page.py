"""The pages: what a browser is given at `/` and, for the API, at `/docs`."""

import gzip
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Self

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_TYPES |= {"svg": "image/svg+xml"}
_PAGES = {"/": "index.html", "/docs": "docs.html"}
# Nothing inline and nothing from another host, so that a caption or a file name can never become a script.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Vary": "Accept-Encoding",
}
# The folder in the address is a digest of all files: what a browser has kept is never out of date.
_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class _File:
    """A file of a page, as it is sent."""

    content: bytes
    packed: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, name: str, content: bytes) -> Self:
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        return cls(content, gzip.compress(content, mtime=0), _TYPES[name.rpartition(".")[2]], etag)

    def answer(self, request: Request, caching: str) -> Response:
        headers = {**_HEADERS, "Cache-Control": caching, "ETag": self.etag}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(self.content, headers=headers, media_type=self.media_type)
        return Response(self.packed, headers={**headers, "Content-Encoding": "gzip"}, media_type=self.media_type)


def router() -> APIRouter:
    """Return the routes of the pages, which are read into memory."""
    version, served = _files()
    routes = APIRouter(include_in_schema=False)

    for path, name in _PAGES.items():
        routes.add_api_route(path, _page(served[name]))

    @routes.get(f"/web/{version}/{{name:path}}")
    async def asset(name: str, request: Request) -> Response:
        if name not in served or name in _PAGES.values():
            raise HTTPException(404, f"The page has no file {name}.")
        return served[name].answer(request, _FOR_EVER)

    return routes


def _page(file: _File) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return file.answer(request, "no-cache")

    return page


@cache
def _files() -> tuple[str, dict[str, _File]]:
    """Return the folder of the files in addresses, and each of them by its name."""
    contents = _read(files("service") / "web")
    version = hashlib.sha256(repr(sorted(contents.items())).encode()).hexdigest()[:12]
    for name in _PAGES.values():
        contents[name] = contents[name].replace(b"VERSION", version.encode())
    return version, {name: _File.of(name, content) for name, content in contents.items()}


def _read(folder: Traversable, prefix: str = "") -> dict[str, bytes]:
    """Return the content of every file that a browser may ask for, by its path in the folder."""
    found: dict[str, bytes] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            found |= _read(entry, f"{prefix}{entry.name}/")
        elif entry.name.rpartition(".")[2] in _TYPES:
            found[f"{prefix}{entry.name}"] = entry.read_bytes()
    return found
