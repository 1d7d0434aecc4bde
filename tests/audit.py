"""`make audit`: known vulnerabilities of what the lock files name.

pip-audit may leave out what it could not ask about, or find nothing to ask about, and call that a success. Here the
audit fails unless it tells of exactly the packages that are locked.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LOCKS = tuple(sorted(Path("docker").glob("requirements-*.lock")))

_PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)


def locked(text: str) -> dict[str, str]:
    """Return the version of each package of a lock file."""
    return dict(_PIN.findall(text))


def findings(lock: str, report: dict[str, Any]) -> list[str]:
    """Return what is wrong, a sentence each: packages that were not audited, and vulnerabilities.

    Args:
        lock: text of a lock file.
        report: what pip-audit told of it, as JSON.
    """
    told = report.get("dependencies", [])
    audited = {each["name"]: each["version"] for each in told if "vulns" in each}
    wanted = locked(lock)
    wrong = [f"{name} {version} was not audited." for name, version in wanted.items() if audited.get(name) != version]
    if not wanted or len(audited) != len(wanted):
        wrong.append(f"{len(audited)} packages were audited, and {len(wanted)} are locked.")
    for each in told:
        wrong += [f"{each['name']} {each['version']} has {flaw['id']}." for flaw in each.get("vulns", ())]
    return wrong


def audit(lock: Path, *flags: str) -> list[str]:
    """Audit a lock file; return what is wrong, a sentence each."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip_audit", "--strict", "--disable-pip", "--require-hashes", *flags]
        command += ["--requirement", str(lock), "--format", "json", "--output", str(out), "--progress-spinner", "off"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if not out.exists() or not out.stat().st_size:
            return [f"pip-audit ended with {ran.returncode} and no report: {ran.stderr.strip()[-500:]}"]
        return findings(lock.read_text(), json.loads(out.read_text()))


def main() -> int:
    """Audit every lock file; return 1 if anything is wrong, or nothing is locked."""
    wrong = 0 if LOCKS else 1
    for lock in LOCKS:
        found = audit(lock)
        wrong += len(found)
        told = "; ".join(found) or "all audited, no vulnerability known"
        print(f"{lock}: {len(locked(lock.read_text()))} packages locked, {told}")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
