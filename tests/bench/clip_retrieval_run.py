"""Runs clip-retrieval's inference, in a Python of its own that has it, and tells when its work began and ended.

`python clip_retrieval_run.py TIMES.json '{"input_dataset": ...}'`: the arguments of its command `inference`. The clock
starts when the model is loaded and warm and the logging process has been imported, as the first picture is asked for;
it stops when the embeddings are written.
"""

import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

# Its torchvision cannot be imported beside a CPU torch either; by path, since kindred is not installed there and its
# package would change OpenMP's settings. Referenced for good: torch forgets operators of what is collected.
_RUNTIME = runpy.run_path(str(Path(__file__).parents[2] / "indexer" / "torch_runtime.py"))

from clip_retrieval.clip_inference import worker  # type: ignore[import-not-found]  # noqa: E402
from clip_retrieval.clip_inference.main import main  # type: ignore[import-not-found]  # noqa: E402

_times: dict[str, float] = {}


class _Logger(worker.LoggerWriter):  # type: ignore[misc]
    """Its logger, which begins the work once the process that writes for it is there."""

    def start(self) -> None:
        """Start, and wait for a first note, of no pictures, to be written."""
        super().start()
        self({"start_time": 0.0, "sample_count": 0})
        while not list(Path(self.stats_folder).glob("wip_*.json")):
            time.sleep(0.01)
        _times["begin"] = time.monotonic()


class _Writer(worker.NumpyWriter):  # type: ignore[misc]
    """Its writer, which ends the work."""

    def flush(self) -> None:
        """Write, and note when."""
        super().flush()
        _times["end"] = time.monotonic()


def _run(times: Path, arguments: dict[str, Any]) -> None:
    worker.LoggerWriter, worker.NumpyWriter = _Logger, _Writer
    main(**arguments)
    times.write_text(json.dumps(_times), encoding="utf-8")


if __name__ == "__main__":
    _run(Path(sys.argv[1]), json.loads(sys.argv[2]))
