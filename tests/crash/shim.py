"""Compiles faultshim.c."""

import shutil
import subprocess
from pathlib import Path


def compile_shim(folder: Path) -> Path | None:
    """Compile the shim into a folder, and return the library; None where there is no C compiler."""
    compiler, library = shutil.which("cc"), folder / "faultshim.so"
    if compiler is None:
        return None
    source = Path(__file__).with_name("faultshim.c")
    subprocess.run([compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library
