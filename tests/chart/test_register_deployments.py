"""What the bootstrap's second half tells `prefect deploy`: from which reference flow pods clone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chart.charts import CHART

SCRIPT = CHART / "files" / "scripts" / "register_deployments.py"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a prefect.yaml and the tag v1."""
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    (folder / "prefect.yaml").write_text("deployments: []\n")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "Flows")
    git(folder, "tag", "v1")
    return folder


def register(repository: Path, ref: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run the script with a `prefect` that prints what it is given."""
    program = tmp_path / "prefect"
    program.write_text('#!/bin/sh\necho "branch=$FLOWS_BRANCH commit=$FLOWS_COMMIT" "$@"; pwd\n')
    program.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FLOWS_")} | {
        "FLOWS_REPOSITORY": f"file://{repository}",
        "FLOWS_REF": ref,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, str(SCRIPT), "*-k8s", "nightly"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("ref", ["main", "v1"])
def test_a_branch_or_tag_is_followed(repository: Path, ref: str, tmp_path: Path) -> None:
    done = register(repository, ref, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"branch={ref} commit= --no-prompt deploy --name *-k8s --name nightly" in done.stdout


def test_a_commit_is_pinned(repository: Path, tmp_path: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    done = register(repository, commit, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"branch= commit={commit} " in done.stdout
