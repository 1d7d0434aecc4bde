"""The process that forks commands of the indexer, as `forks.py` asks on standard input.

It has one thread when it forks, which it checks: no lock of another thread can be left behind locked in a child.
"""

import ctypes
import functools
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import scipy.optimize  # noqa: F401 - for the forks as well
from PIL import Image

# Everything that a build imports, so that its forks need not.
import indexer.fork_server
import indexer.index  # noqa: F401
from indexer import build_command
from indexer.__main__ import main
from indexer.encoder import Embeddings, EncoderName, Pixels, load_encoder
from indexer.open_clip_encoder import OpenClipEncoder
from indexer.settings import Settings

_SET_CHILD_SUBREAPER = 36
_ENCODED = 100
"""The descriptor that the numbers of encoded pictures are written to."""
_ORPHANS_SECONDS = 10


def _serve() -> None:
    """Fork, and reap, as standard input asks; a child returns from here to run its command."""
    answers = os.fdopen(os.dup(1), "w")
    answers.write("0\n")
    answers.flush()
    # Orphans of a command become children of this process, which waits for their end.
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)
    leaders: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "reap" in request:
            leaders.remove(request["reap"])
            answer = _reap(request["reap"], leaders)
        else:
            threads = len(list(Path("/proc/self/task").iterdir()))
            if threads != 1:
                raise RuntimeError(f"a process of {threads} threads is not safe to fork")
            ready, ours = os.pipe()
            answer = os.fork()
            if answer == 0:
                _become(request)
                os.write(ours, b"!")
                return
            os.close(ours)
            # Its group exists when it is told of, and it forks no more: a child that is born to a group as that is
            # stopped may not hear that all shall go on.
            os.read(ready, 1)
            os.close(ready)
            leaders.add(answer)
        answers.write(f"{answer}\n")
        answers.flush()
    os._exit(0)


def _reap(leader: int, others: set[int]) -> int:
    """Wait for the end of a command, and return its exit code or, negative, its signal.

    Raises:
        RuntimeError: a process that it had started outlives it.
    """
    status = os.waitstatus_to_exitcode(os.waitpid(leader, 0)[1])
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    deadline = time.monotonic() + _ORPHANS_SECONDS
    while orphans := set(map(int, children.read_text().split())) - others:
        for orphan in orphans:
            os.waitpid(orphan, os.WNOHANG)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes of a command outlive it: {orphans}")
        time.sleep(0.001)
    return status


class _Spare:
    """A fork that waits to be the fork server of a DecodePool, which as a new Python would import torch for seconds.

    Made while its parent has one thread. It has what the pool asks of a `subprocess.Popen`.
    """

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self._control.close()
            os.setsid()
            theirs.send(b"!")
            told, fds, *_ = socket.recv_fds(theirs, 10_000, 1)
            if fds:
                code, number = json.loads(told)
                os.dup2(fds[0], number, inheritable=False)
                exec(code, {})  # noqa: S102 - what the pool would have Python run
            os._exit(0)
        theirs.close()
        self._control.recv(1)

    def start(self, command: Sequence[str], *, pass_fds: Sequence[int], **_: Any) -> Self:
        """Be the child that Popen would start: `python -c CODE`, with one descriptor passed on."""
        socket.send_fds(self._control, [json.dumps([command[-1], *pass_fds]).encode()], pass_fds)
        return self

    def wait(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        watch = os.pidfd_open(self.pid)
        if not select.select([watch], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("fork server", timeout or 0)
        os.waitpid(self.pid, 0)

    def kill(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)


def _become(request: dict[str, Any]) -> None:
    """Turn this fork into a command of its own process group."""
    os.setpgid(0, 0)
    subprocess.Popen = _Spare().start  # type: ignore[assignment, misc]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, stream in ((1, "out"), (2, "err"), (_ENCODED, "encoded")):
        os.dup2(os.open(Path(request["out"], stream), os.O_WRONLY | os.O_CREAT, 0o644), number, inheritable=number < 3)
    sys.argv = ["indexer", *request["fork"]]
    if request["most_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["most_bytes"],) * 2)
    if fault := request["fault"]:
        told = [os.fsencode(fault[key]) for key in ("folder", "log", "action")]
        ctypes.CDLL(None).faultshim_arm(*told, ctypes.c_long(fault["point"]))


def _load_once(model: str) -> None:
    """Load the encoder that commands will ask for, so that they have it at once."""
    settings = Settings()
    load = functools.cache(load_encoder)
    vars(build_command)["load_encoder"] = load
    encoder = load(EncoderName(model=model), device=settings.device, threads=settings.threads)
    encoder.encode_images([encoder.preprocess(Image.new("RGB", (8, 8)))])


def _count_encoded() -> None:
    """Have the encoder write down how many pictures it is given."""
    encode = OpenClipEncoder.encode_images

    def counted(self: OpenClipEncoder, pixels: Sequence[Pixels]) -> Embeddings:
        os.write(_ENCODED, f"{len(pixels)}\n".encode())
        return encode(self, pixels)

    OpenClipEncoder.encode_images = counted  # type: ignore[method-assign]


def _run_command() -> None:
    """Run the command line, and end without the half second in which Python takes torch apart."""
    code: int | str | None = 1
    try:
        main()
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):  # Python would print that too
            sys.stderr.write(f"{code}\n")
            code = 1
    except BaseException:  # noqa: BLE001 - Python would print it and exit with 1
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    # imagehash imports it at its first use, which would be in every worker.
    importlib.import_module("scipy.fftpack")
    _load_once(sys.argv[1])
    _count_encoded()
    gc.freeze()
    _serve()
    _run_command()
