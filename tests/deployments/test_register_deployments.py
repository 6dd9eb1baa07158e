"""The bootstrap's script that clones the flow repository and registers its deployments."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists

from tests.deployments.git_server import ROOT, GitServer, git, prefect_environment

pytestmark = pytest.mark.services

SCRIPT = str(ROOT / "charts/prefect-hamilton/files/scripts/register_deployments.py")


def register(
    api_url: str, git_server: GitServer, folder: Path, **environment: str
) -> tuple[int, str]:
    """Exit code and output of the script, as the bootstrap's Job starts it."""
    with contextlib.suppress(ObjectAlreadyExists), get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="kubernetes", type="kubernetes"))
    done = subprocess.run(
        [sys.executable, SCRIPT, "walkthrough-k8s"],
        cwd=folder,
        env=prefect_environment(
            api_url,
            GIT_SSL_CAINFO=str(git_server.certificate),
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            **environment,
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("pinned_by", "answers"),
    [("branch", (503, 503)), ("commit", (200, 200, 200, 503, 200, 200, 200, 503))],
)
def test_a_git_server_that_fails_for_a_moment_is_asked_again(
    pinned_by: str,
    answers: tuple[int, ...],
    prefect_api: str,
    git_server: GitServer,
    flow_repository: Path,
    tmp_path: Path,
) -> None:
    url = git_server.publish(flow_repository, f"register-{pinned_by}")
    commit = git("rev-parse", "HEAD", cwd=flow_repository)
    wanted = {"branch": "main", "commit": commit}[pinned_by]
    git_server.answer_next(*answers)

    code, output = register(
        prefect_api, git_server, tmp_path, FLOWS_REPOSITORY=url, FLOWS_REF=wanted
    )

    assert code == 0, output
    assert output.count("Trying again: ") == 2
    assert f"Cloned {url} at {wanted}." in output
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("ui-walkthrough-retries/walkthrough-k8s")
    (step,) = deployment.pull_steps or []
    assert step["prefect.deployments.steps.git_clone"]["repository"] == url


@pytest.mark.parametrize(
    ("path", "environment", "cause"),
    [
        (
            "private/register",
            {"FLOWS_REF": "main", "GIT_ACCESS_TOKEN": "not-the-token"},
            "could not read Password",
        ),
        ("register-absent", {"FLOWS_REF": 40 * "a"}, "not our ref"),
    ],
    ids=["wrong token", "no such commit"],
)
def test_a_repository_that_cannot_be_cloned_is_told(
    path: str,
    environment: dict[str, str],
    cause: str,
    prefect_api: str,
    git_server: GitServer,
    flow_repository: Path,
    tmp_path: Path,
) -> None:
    url = git_server.publish(flow_repository, path)

    code, output = register(prefect_api, git_server, tmp_path, FLOWS_REPOSITORY=url, **environment)

    assert code == 1
    last = output.splitlines()[-1]
    assert last.startswith(f"{url} at {environment['FLOWS_REF']} cannot be cloned: ")
    assert cause in last
    assert "Traceback" not in output
    assert "not-the-token" not in output
