"""A server on loopback that fails on purpose, in TCP and in HTTP: a given number of times, and then answers well."""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Self

Fault = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]
"""What becomes of a request in place of the body that it should get."""

FOREVER = 10**9


class FaultServer:
    """Serves one body; every URL that `url` returns fails first. `seen` counts the requests of each path."""

    def __init__(self, body: bytes, tls: ssl.SSLContext | None = None) -> None:
        self.body = body
        self.port = 0
        self.seen: Counter[str] = Counter()
        self._tls = tls
        self._faults: dict[str, tuple[Fault, int]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def host(self) -> str:
        """Host and port, as one writes them into `fetch_hosts`."""
        return f"127.0.0.1:{self.port}"

    def url(self, fault: Fault, times: int = 1, path: str = "") -> str:
        """Return a URL that fails so often, and then holds the body."""
        path = path or f"/{len(self._faults)}.png"
        self._faults[path] = (fault, times)
        return f"http{'s' if self._tls else ''}://{self.host}{path}"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(lambda *_: None)  # broken connections are what it is for
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1].decode()
            self.seen[path] += 1
            fault, times = self._faults.get(path, (good, 0))
            await (fault if self.seen[path] <= times else good)(writer, self.body)
            await writer.drain()
        writer.close()


def head(status: str = "200 OK", **headers: object) -> bytes:
    """Return the head of an answer; the names of headers with `_` for `-`."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "\r\n"]).encode("latin-1")


def sends(*parts: bytes) -> Fault:
    """Send these bytes and close."""

    async def fault(writer: asyncio.StreamWriter, _: bytes) -> None:
        writer.write(b"".join(parts))

    return fault


def answers(status: str, **headers: object) -> Fault:
    """Answer with a status and an empty body."""
    return sends(head(status, Content_Length=0, **headers))


def redirects(location: str, status: str = "302 Found") -> Fault:
    """Send the reader elsewhere."""
    return answers(status, Location=location)


async def good(writer: asyncio.StreamWriter, body: bytes) -> None:
    """Send the body as it should be sent."""
    writer.write(head(Content_Length=len(body)) + body)


async def late(writer: asyncio.StreamWriter, body: bytes) -> None:
    """Send it a little later."""
    await asyncio.sleep(0.2)
    await good(writer, body)


async def chunked(writer: asyncio.StreamWriter, body: bytes) -> None:
    """Send it in chunks."""
    writer.write(head(Transfer_Encoding="chunked"))
    for start in range(0, len(body), 1000):
        part = body[start : start + 1000]
        writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
    writer.write(b"0\r\n\r\n")


async def unmeasured(writer: asyncio.StreamWriter, body: bytes) -> None:
    """Send it without a length: its end is that of the connection."""
    writer.write(head() + body)


async def misnumbered(writer: asyncio.StreamWriter, body: bytes) -> None:
    """Send it with a length that is no number."""
    writer.write(head(Content_Length="many") + body)


async def short(writer: asyncio.StreamWriter, body: bytes) -> None:
    """End it ten bytes early."""
    writer.write(head(Content_Length=len(body)) + body[:-10])


async def short_chunk(writer: asyncio.StreamWriter, body: bytes) -> None:
    """End it within a chunk."""
    writer.write(head(Transfer_Encoding="chunked") + b"1000\r\n" + body[:100])


def resets(at: int | None) -> Fault:
    """Reset the connection after so many bytes of the body; None: before the answer."""

    async def fault(writer: asyncio.StreamWriter, body: bytes) -> None:
        if at is not None:
            writer.write(head(Content_Length=len(body)) + body[:at])
            await writer.drain()
            await asyncio.sleep(0.05)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return fault


async def silent(_writer: asyncio.StreamWriter, _body: bytes) -> None:
    """Never answer."""
    await asyncio.sleep(FOREVER)


def drips(data: bytes) -> Fault:
    """Send this, and then a byte every 20 ms, for ever."""

    async def fault(writer: asyncio.StreamWriter, _: bytes) -> None:
        writer.write(data)
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    return fault


async def endless(writer: asyncio.StreamWriter, _: bytes) -> None:
    """Send zeros without a length, for ever."""
    writer.write(head())
    while True:
        writer.write(bytes(2**16))
        await writer.drain()
