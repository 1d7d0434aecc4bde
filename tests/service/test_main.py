"""`python -m service`, as it is started and stopped."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_lines_it_prints_work_as_pasted_and_it_stops_on_sigterm(snapshots: Path) -> None:
    command = [sys.executable, "-m", "service", "--snapshots", str(snapshots), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        first, *lines = [server.stdout.readline().strip() for _ in range(4)]
        try:
            assert first.startswith("kindred serves 24 pictures on http://127.0.0.1:")
            answers = [
                json.loads(subprocess.run(line, shell=True, check=True, capture_output=True).stdout)  # noqa: S602
                for line in lines
            ]
        finally:
            server.send_signal(signal.SIGTERM)
        # uvicorn ends what is under way, and then by the signal that it was sent.
        assert server.wait(30) == -signal.SIGTERM
    by_text, by_picture, classified = answers
    assert len(by_text["results"]) == 5
    assert (by_picture["results"][0]["path"], by_picture["results"][0]["score"]) == ("blue/0.png", 1.0)
    assert sum(each["probability"] for each in classified["classes"]) == pytest.approx(1)


def test_a_folder_without_a_snapshot_is_served_with_a_hint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service", "--snapshots", str(tmp_path / "none"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=30)
    assert "with nothing to search yet: no snapshot" in line
    assert "no admin routes: KINDRED_ADMIN_KEY is not set" in log
    assert server.returncode == -signal.SIGTERM
