"""What the project stands on: locked, licensed, audited; and what its code may not do with what it reads."""

import ast
import hashlib
import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.audit import LOCKS, audit, findings, locked
from tests.test_architecture import MODULES, imports
from tests.trust.figures import noted

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# These come from PyTorch's own index, in the versions of constraints.txt.
ELSEWHERE = {"torch", "torchvision"}
# What may be linked with, sold and kept closed under Apache-2.0. MPL-2.0 asks only for changes of its own files.
ALLOWED = {
    "0BSD", "2-clause BSD License", "3-Clause BSD License",
    "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "Apache Software License", "BSD", "BSD License",
    "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND", "ISC", "ISC License (ISCL)", "MIT",
    "MIT License", "MIT-CMU", "MIT-0", "MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)", "NCSA", "PSF-2.0",
    "Python Software Foundation License", "Unlicense", "Zlib",
}  # fmt: skip
# Wheels that bring libraries of other licences, and tell so in their own long way.
READ_BY_HAND = {"scipy": "BSD-3-Clause, with libgfortran and libquadmath under GPL-3.0 WITH GCC-exception-3.1"}
WEIGHTS = {
    "open_clip_model.safetensors": "359488e13a4683bfa1a9fc515ea89cef266429ca227d57c6820362da097ac152",
    "open_clip_config.json": "844582a724960134f9451c359f1abf6ecb7400599fe72b5af859e57d4b307510",
}
FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "telnetlib"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "tempfile.mktemp",
}  # fmt: skip


def requirements(extra: str) -> dict[str, Requirement]:
    """Return what the project and one of its extras want, by name."""
    return {canonicalize_name(each.name): each for each in map(Requirement, [*PROJECT["dependencies"], *EXTRAS[extra]])}


def installed_closure() -> dict[str, Distribution]:
    """Return what the service stands on, directly or not, of what is installed here."""
    found: dict[str, Distribution] = {}
    waiting = [*requirements("cpu").values(), *requirements("otel").values()]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in found:
            continue
        try:
            found[name] = distribution(wanted.name)
        except PackageNotFoundError:
            continue
        extras = (*wanted.extras, "")
        own = list(map(Requirement, found[name].requires or []))
        waiting += [each for each in own if not each.marker or any(each.marker.evaluate({"extra": e}) for e in extras)]
    return found


def licences(package: Distribution) -> set[str]:
    """Return the licences that all hold; of alternatives, the words of each."""
    about = package.metadata
    expression = (about.get_all("License-Expression") or [""])[0]
    if not expression:
        rows = [row.split(" :: ")[-1] for row in about.get_all("Classifier") or [] if row.startswith("License ::")]
        rows = [row for row in rows if row != "OSI Approved"]
        expression = " AND ".join(rows) or about["License"].splitlines()[0]
    return {part.removeprefix("(").strip() for part in re.split(r" AND | OR ", expression)}


@pytest.mark.parametrize("name", ["cpu", "dev"])
def test_every_requirement_is_locked_in_a_version_that_it_allows(name: str) -> None:
    pins = locked((ROOT / "docker" / f"requirements-{name}.lock").read_text())
    constraints = locked((ROOT / "constraints.txt").read_text())
    wanted = requirements("cpu") | requirements("otel") | (requirements("dev") if name == "dev" else {})
    for package, requirement in wanted.items():
        if package != "kindred":
            version = constraints[package] if package in ELSEWHERE else pins[package]
            assert requirement.specifier.contains(version), f"{package} {version}"
    assert {package: version for package, version in constraints.items() if package in pins} == {
        package: pins[package] for package in constraints.keys() & pins.keys()
    }


@pytest.mark.parametrize("lock", LOCKS, ids=str)
def test_every_locked_package_has_a_hash_and_none_is_for_cuda(lock: Path) -> None:
    entries = re.split(r"\n(?=[a-z0-9])", (ROOT / lock).read_text().strip())[1:]  # a comment comes first
    assert len(entries) == len(locked((ROOT / lock).read_text())) > 50
    assert [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)] == []
    assert [entry for entry in entries if re.match(r"nvidia|cuda|triton|torch", entry)] == []
    noted(promise="R24", figure=f"{len(entries)} packages locked, {len(entries)} with hashes")


def test_every_licence_of_what_the_service_stands_on_is_allowed() -> None:
    packages = installed_closure()
    assert len(packages) > 40
    strange = {name: licences(each) - ALLOWED for name, each in packages.items() if name not in READ_BY_HAND}
    assert {name: kinds for name, kinds in strange.items() if kinds} == {}
    noted(promise="R24", figure=f"{len(packages)} packages under the service: all licences allowed, 1 read by hand")


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_bundled_model_is_the_one_that_was_published(name: str) -> None:
    data = (ROOT / "indexer" / "models" / "demo" / name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == WEIGHTS[name]


@pytest.mark.parametrize("name", MODULES)
def test_no_module_unpickles_evaluates_or_asks_a_shell(name: str) -> None:
    calls = [node for node in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(node, ast.Call)]
    assert not {each.split(".")[0] for each in imports(name)} & FORBIDDEN_IMPORTS
    for call in calls:
        called, keywords = ast.unparse(call.func), set(map(ast.unparse, call.keywords))
        assert called not in FORBIDDEN_CALLS, f"{name}:{call.lineno}"
        assert not keywords & {"shell=True", "allow_pickle=True", "weights_only=False"}, f"{name}:{call.lineno}"
        if called in {"torch.load", "torch.hub.load"}:
            assert "weights_only=True" in keywords, f"{name}:{call.lineno}"


LOCK = "rich==15.0.0 \\\n    --hash=sha256:aa\ntyper==0.29.2 \\\n    --hash=sha256:bb\n"
RICH = {"name": "rich", "version": "15.0.0", "vulns": []}
TYPER = {"name": "typer", "version": "0.29.2", "vulns": []}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        pytest.param([RICH, TYPER], [], id="all-audited"),
        pytest.param([], ["rich 15.0.0 was not", "typer 0.29.2 was not", "0 packages were audited"], id="none-audited"),
        pytest.param([RICH], ["typer 0.29.2 was not", "1 packages were audited, and 2 are"], id="one-left-out"),
        pytest.param(
            [RICH, {"name": "typer", "skip_reason": "not found"}], ["typer 0.29.2 was not", "1 packages"], id="skipped"
        ),
        pytest.param([RICH, {**TYPER, "version": "0.29.1"}], ["typer 0.29.2 was not"], id="another-version"),
        pytest.param([RICH, {**TYPER, "vulns": [{"id": "CVE-2026-1"}]}], ["typer 0.29.2 has CVE-2026-1"], id="flaw"),
    ],
)
def test_an_audit_passes_only_if_it_tells_of_all_that_is_locked(told: list[Any], said: list[str]) -> None:
    found = findings(LOCK, {"dependencies": told})
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))


def test_an_empty_lock_is_no_success() -> None:
    assert findings("", {"dependencies": []}) == ["0 packages were audited, and 0 are locked."]


class _Osv(BaseHTTPRequestHandler):
    """Answers as osv.dev does: one package has a flaw, the others have none."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        flawed = asked["package"]["name"] == "typer"
        answer = json.dumps({"vulns": [_FLAW]} if flawed else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None: ...


_FLAW = {
    "id": "GHSA-0000-0000-0000",
    "summary": "made up",
    "affected": [
        {"package": {"name": "typer", "ecosystem": "PyPI"}, "versions": ["0.29.2"], "ranges": []},
    ],
}


@contextmanager
def osv() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Osv) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()
            thread.join()


def test_pip_audit_is_understood(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(LOCK.replace("aa", "0" * 64).replace("bb", "0" * 64))
    with osv() as url:
        found = audit(lock, "--vulnerability-service", "osv", "--osv-url", url, "--cache-dir", str(tmp_path / "cache"))
    assert found == ["typer 0.29.2 has GHSA-0000-0000-0000."]
    away = audit(lock, "--vulnerability-service", "osv", "--osv-url", "http://127.0.0.1:9/", "--timeout", "1")
    assert len(away) == 1
    assert "no report" in away[0]
    noted(promise="R24", figure="2 locked packages audited against a database of 1 flaw: found; none without an answer")


def test_the_bill_of_materials_names_all_that_is_locked(tmp_path: Path) -> None:
    command = re.search(r"^\t\$\(BIN\)/(cyclonedx-py .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command is not None
    out = tmp_path / "sbom.json"
    words = command[1].replace("$(DEMO)/sbom.json", str(out)).split()
    subprocess.run([Path(sys.executable).parent / words[0], *words[1:]], cwd=ROOT, check=True, capture_output=True)
    bill = json.loads(out.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    named = {each["name"]: each["version"] for each in bill["components"]}
    assert named == locked((ROOT / "docker" / "requirements-cpu.lock").read_text())
    noted(promise="R24", figure=f"{len(named)} packages in the bill of materials, the same as are locked")
