"""Additional virtual environments, for tests of other versions of a package."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import ROOT

UNREACHABLE = ("Failed to fetch", "error sending request", "network was disabled")
"""What uv says when neither its cache nor a package index has a package."""


def uv(*arguments: str) -> str:
    """Output of uv; skips the test where there is no uv, or no package index that it reaches."""
    command = shutil.which("uv") or str(ROOT / ".cache/uv/bin/uv")
    if not Path(command).exists():
        pytest.skip("no uv on PATH or in .cache: make test fetches it")
    done = subprocess.run(
        [command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if any(words in done.stderr for words in UNREACHABLE):
        pytest.skip(f"no package index can be reached: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def make(folder: Path, *packages: str) -> Path:
    """Install what the arguments of `uv pip install` say; returns the environment's Python."""
    uv("venv", "--quiet", "--python", sys.executable, str(folder))
    python = folder / "bin/python"
    uv("pip", "install", "--quiet", "--no-config", "--python", str(python), *packages)
    return python


def make_locked(folder: Path, *groups: str) -> Path:
    """Install what the lock file says of some dependency groups, as `images/install.sh` does."""
    wanted = [f"--only-group={group}" for group in groups]
    requirements = folder.with_suffix(".txt")
    uv("export", "--quiet", "--frozen", *wanted, "--output-file", str(requirements))
    return make(folder, "--no-deps", "--require-hashes", "--requirements", str(requirements))
