"""The `-k8s` deployments register and their pull step clones from a real Git server."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectAlreadyExists

from tests.deployments.git_server import ROOT, GitServer, git, prefect_environment

pytestmark = pytest.mark.services

WALKTHROUGH = "ui-walkthrough-retries/walkthrough-k8s"
GIT_CLONE = "prefect.deployments.steps.git_clone"
TOKEN_BLOCK = "{{ prefect.blocks.secret.git-access-token }}"


@pytest.fixture(autouse=True)
def kubernetes_pool(prefect_api: str) -> None:
    with contextlib.suppress(ObjectAlreadyExists), get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="kubernetes", type="kubernetes"))


def deploy(api_url: str, name: str, **environment: str) -> str:
    """Register deployments as the README says and return what the command printed."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "deploy", "--name", name, "--no-prompt"],
        cwd=ROOT,
        env=prefect_environment(api_url, **environment),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_as_a_pod_does(
    api_url: str, folder: Path, git_server: GitServer, **environment: str
) -> tuple[FlowRun, str]:
    """Start a run with a pod's command in an empty folder; return the run and all it logged."""
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(WALKTHROUGH)
        created = client.create_flow_run_from_deployment(deployment.id)
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "flow-run", "execute", str(created.id)],
        cwd=folder,
        env=prefect_environment(
            api_url,
            GIT_SSL_CAINFO=str(git_server.certificate),
            PREFECT_LOGGING_LEVEL="DEBUG",
            **environment,
        ),
        capture_output=True,
        text=True,
    )
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(created.id)
        logs = client.read_logs(
            LogFilter(flow_run_id=LogFilterFlowRunId(any_=[created.id])), limit=200
        )
    return run, done.stdout + done.stderr + "\n".join(log.message for log in logs)


def stored_clone_step(deployment: str) -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        (step,) = client.read_deployment_by_name(deployment).pull_steps or []
    return dict(step[GIT_CLONE])


@pytest.fixture
def clone_from_pod_environment(prefect_api: str) -> None:
    """The walkthrough, registered where nothing is set: the pod's environment decides."""
    deploy(prefect_api, "walkthrough-k8s")


def test_all_register_with_their_schedules_and_triggers(prefect_api: str) -> None:
    printed = deploy(prefect_api, "*-k8s", FLOWS_REPOSITORY="https://git.example.org/flows.git")
    with get_client(sync_client=True) as client:
        deployments = {d.name: d for d in client.read_deployments() if d.name.endswith("-k8s")}
    assert set(deployments) == {
        "production-etl-k8s",
        "absenteeism-k8s",
        "walkthrough-k8s",
        "after-production-etl-k8s",
        "on-failure-k8s",
    }, printed
    for deployment in deployments.values():
        assert deployment.work_pool_name == "kubernetes"
        (step,) = deployment.pull_steps or []
        assert step[GIT_CLONE]["repository"] == "https://git.example.org/flows.git"
    (schedule,) = deployments["production-etl-k8s"].schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 9 * * *", "America/Chicago")


@pytest.mark.parametrize("pinned_by", ["FLOWS_BRANCH", "FLOWS_COMMIT"])
def test_a_run_uses_the_branch_or_commit_that_was_asked_for(
    pinned_by: str,
    prefect_api: str,
    git_server: GitServer,
    flow_repository: Path,
    tmp_path: Path,
    clone_from_pod_environment: None,
) -> None:
    git("tag", "stable", cwd=flow_repository)
    commit = git("rev-parse", "HEAD", cwd=flow_repository)
    (flow_repository / "flows/retries_demo.py").write_text("raise SystemExit('newer code')\n")
    git("commit", "--quiet", "-am", "Break it", cwd=flow_repository)
    url = git_server.publish(flow_repository, pinned_by.lower())
    wanted = {"FLOWS_BRANCH": "stable", "FLOWS_COMMIT": commit}[pinned_by]
    run, log = run_as_a_pod_does(
        prefect_api, tmp_path, git_server, FLOWS_REPOSITORY=url, **{pinned_by: wanted}
    )
    assert run.state is not None and run.state.is_completed(), log


def test_a_private_repository_opens_with_the_token_of_a_block(
    prefect_api: str, git_server: GitServer, flow_repository: Path, tmp_path: Path
) -> None:
    url = git_server.publish(flow_repository, "private/flows")
    Secret(value=git_server.token).save("git-access-token", overwrite=True)
    deploy(prefect_api, "walkthrough-k8s", FLOWS_REPOSITORY=url, FLOWS_ACCESS_TOKEN=TOKEN_BLOCK)
    assert stored_clone_step(WALKTHROUGH) == {"repository": url} | {
        "branch": "{{ $FLOWS_BRANCH }}",
        "commit_sha": "{{ $FLOWS_COMMIT }}",
        "access_token": TOKEN_BLOCK,
    }
    run, log = run_as_a_pod_does(prefect_api, tmp_path, git_server)
    assert run.state is not None and run.state.is_completed(), log
    assert git_server.token not in log


@pytest.mark.parametrize(
    ("path", "environment", "expected"),
    [
        ("private/closed", {"FLOWS_ACCESS_TOKEN": "not-the-token"}, "could not read Password"),
        ("absent", {}, "not found"),
        ("public", {"FLOWS_BRANCH": "no-such-branch"}, "no-such-branch|branch"),
    ],
    ids=["wrong token", "no such repository", "no such branch"],
)
def test_a_failed_clone_says_why_in_the_log_of_the_run(
    path: str,
    environment: dict[str, str],
    expected: str,
    prefect_api: str,
    git_server: GitServer,
    flow_repository: Path,
    tmp_path: Path,
    clone_from_pod_environment: None,
) -> None:
    if path != "absent":
        git_server.publish(flow_repository, path)
    run, log = run_as_a_pod_does(
        prefect_api,
        tmp_path,
        git_server,
        FLOWS_REPOSITORY=f"{git_server.url}/{path}.git",
        **environment,
    )
    assert run.state is not None and not run.state.is_completed()
    assert re.search(rf"{path}.*({expected})", log), log
    assert "not-the-token" not in log
