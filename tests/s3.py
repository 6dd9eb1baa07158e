"""A real S3 server, versitygw, built from its Go module."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.services import ROOT

VERSION = "v1.8.0"


def program() -> Path:
    """The server's program, built once; skips the test where Go is missing or cannot build it."""
    folder = ROOT / ".cache/versitygw" / VERSION
    found = folder / "versitygw"
    if found.exists():
        return found
    if not shutil.which("go"):
        pytest.skip("no go on PATH, with which the S3 server is built")
    environment = {**os.environ, "GOBIN": str(folder), "CGO_ENABLED": "0", "GOFLAGS": ""}
    command = ["go", "install", f"github.com/versity/versitygw/cmd/versitygw@{VERSION}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the S3 server cannot be built: {done.stderr[-300:]}")
    return found
