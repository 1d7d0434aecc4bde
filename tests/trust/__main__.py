"""`python -m tests.trust`, or `make trust`: runs every test that notes a figure, and writes the page of figures."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.trust.figures import COLLECTED, PAGE, ROOT, SIZE, Row, updated


def main(chosen: list[str]) -> int:
    """Run the tests of the programme, or those that are named, and write the page.

    Returns:
        The exit code of pytest; the page holds the figures of what succeeded.
    """
    noting = (path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "noted(" in path.read_text())
    with tempfile.TemporaryDirectory() as folder:
        collected = Path(folder, "figures")
        collected.touch()
        environment = {SIZE: "middle", **os.environ, COLLECTED: str(collected)}
        command = [sys.executable, "-m", "pytest", *(chosen or map(str, noting))]
        code = subprocess.run(command, check=False, cwd=ROOT, env=environment).returncode
        measured = [Row(**json.loads(line)) for line in collected.read_text().splitlines()]
    PAGE.write_text(updated(PAGE.read_text() if PAGE.exists() else "", measured))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
