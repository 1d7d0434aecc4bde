"""The whole API against its own OpenAPI document: schemathesis sends what the document allows, and what it does not.

Every answer must have a documented status, media type and shape, and none may be a fault of the service. By hand,
`make schema-test` sends each route thousands of requests.
"""

import os
import subprocess
from pathlib import Path
from shutil import which
from sys import executable

from tests.conftest import ADMIN_KEY
from tests.served import serving

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


def test_every_answer_is_as_the_document_says_whatever_is_sent(snapshots: Path) -> None:
    program = which("schemathesis", path=str(Path(executable).parent))
    assert program is not None
    with serving(snapshots, KINDRED_ADMIN_KEY=ADMIN_KEY) as service:
        command = [program, "run", f"{service.address}/openapi.json", "--checks", ",".join(CHECKS)]
        command += ["--phases", os.environ.get("SCHEMA_PHASES", "examples,fuzzing")]
        command += ["--max-examples", os.environ.get("SCHEMA_EXAMPLES", "10"), "--seed", "1", "--no-color"]
        # A reindex is a process and seconds for each that is taken: other tests have it.
        command += ["--header", f"Authorization: Bearer {ADMIN_KEY}", "--exclude-path", "/admin/v1/reindex"]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout[-6_000:] + told.stderr[-2_000:]
