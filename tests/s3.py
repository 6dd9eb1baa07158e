"""A real S3 server, versitygw, built from its Go module."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clusters import Cluster
from tests.services import ROOT

VERSION = "v1.8.0"

SERVE = """
mkdir /tmp/data /tmp/attributes /tmp/users
until test -x /tmp/versitygw; do sleep 0.1; done
exec /tmp/versitygw --iam-dir /tmp/users posix --sidecar /tmp/attributes /tmp/data
"""
"""Command of a pod that starts the server, at port 7070, as soon as it has the program.

It may have users besides ROOT_ACCESS_KEY, whose secret is ROOT_SECRET_KEY.
"""


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


def send(cluster: Cluster, pod: str) -> None:
    """Send the program to a pod that waits for it, and wait until it serves."""
    pod = f"pod/{pod}"
    cluster.kubectl("wait", pod, "--for=jsonpath={.status.phase}=Running", "--timeout=120s")
    receive = "cat > /tmp/received && chmod +x /tmp/received && mv /tmp/received /tmp/versitygw"
    with program().open("rb") as content:
        cluster.pipe("exec", "--stdin", pod, "--", "sh", "-c", receive, stdin=content)
    cluster.kubectl("wait", pod, "--for=condition=Ready", "--timeout=120s")
