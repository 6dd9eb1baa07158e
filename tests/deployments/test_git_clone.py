"""The `-k8s` deployments register and their pull step clones from a real Git server."""

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

from tests.deployments.git_server import ROOT, GitServer, git, prefect_environment

pytestmark = pytest.mark.services

WALKTHROUGH = "ui-walkthrough-retries/walkthrough-k8s"
TOKEN_BLOCK = "{{ prefect.blocks.secret.git-access-token }}"


@pytest.fixture(scope="module", autouse=True)
def kubernetes_pool(prefect_api: str) -> None:
    with get_client(sync_client=True) as client:
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
    api_url: str, deployment: str, folder: Path, git_server: GitServer
) -> tuple[FlowRun, str]:
    """Start a run of the deployment with a pod's command in an empty folder; return run and log."""
    folder.mkdir()
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name(deployment)
        created = client.create_flow_run_from_deployment(found.id)
    environment = prefect_environment(
        api_url, GIT_SSL_CAINFO=str(git_server.certificate), PREFECT_LOGGING_LEVEL="DEBUG"
    )
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "flow-run", "execute", str(created.id)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(created.id)
        logs = client.read_logs(
            LogFilter(flow_run_id=LogFilterFlowRunId(any_=[created.id])), limit=200
        )
    return run, done.stdout + done.stderr + "\n".join(log.message for log in logs)


def stored_pull_step(deployment: str) -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        (step,) = client.read_deployment_by_name(deployment).pull_steps or []
    return dict(step["prefect.deployments.steps.git_clone"])


def test_all_register_with_their_schedules_and_triggers(prefect_api: str) -> None:
    printed = deploy(prefect_api, "*-k8s", FLOWS_REPOSITORY="https://git.example.org/flows.git")
    with get_client(sync_client=True) as client:
        deployments = {d.name: d for d in client.read_deployments()}
    assert {
        "production-etl-k8s",
        "absenteeism-k8s",
        "walkthrough-k8s",
        "after-production-etl-k8s",
        "on-failure-k8s",
    } <= set(deployments), printed
    for name, deployment in deployments.items():
        if name.endswith("-k8s"):
            assert deployment.work_pool_name == "kubernetes"
            (step,) = deployment.pull_steps or []
            clone = step["prefect.deployments.steps.git_clone"]
            assert clone["repository"] == "https://git.example.org/flows.git"
    (schedule,) = deployments["production-etl-k8s"].schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 9 * * *", "America/Chicago")


def test_a_run_clones_the_branch_and_completes(
    prefect_api: str, git_server: GitServer, flow_repository: Path, tmp_path: Path
) -> None:
    url = git_server.publish(flow_repository, "public")
    deploy(prefect_api, "walkthrough-k8s", FLOWS_REPOSITORY=url, FLOWS_BRANCH="main")
    run, log = run_as_a_pod_does(prefect_api, WALKTHROUGH, tmp_path / "pod", git_server)
    assert run.state is not None and run.state.is_completed(), log
    (clone,) = [p for p in (tmp_path / "pod").iterdir() if p.is_dir()]
    assert git("rev-list", "--count", "HEAD", cwd=clone) == "1"
    assert git("rev-parse", "--is-shallow-repository", cwd=clone) in {"true", "false"}


def test_a_run_uses_the_commit_that_was_asked_for(
    prefect_api: str, git_server: GitServer, flow_repository: Path, tmp_path: Path
) -> None:
    first = git("rev-parse", "HEAD", cwd=flow_repository)
    (flow_repository / "flows/retries_demo.py").write_text("raise SystemExit('newer code')\n")
    git("commit", "--quiet", "-am", "Break it", cwd=flow_repository)
    url = git_server.publish(flow_repository, "pinned")
    deploy(prefect_api, "walkthrough-k8s", FLOWS_REPOSITORY=url, FLOWS_COMMIT=first)
    run, log = run_as_a_pod_does(prefect_api, WALKTHROUGH, tmp_path / "pod", git_server)
    assert run.state is not None and run.state.is_completed(), log


def test_a_private_repository_opens_with_the_token_of_a_block(
    prefect_api: str, git_server: GitServer, flow_repository: Path, tmp_path: Path
) -> None:
    url = git_server.publish(flow_repository, "private/flows")
    Secret(value=git_server.token).save("git-access-token", overwrite=True)
    deploy(prefect_api, "walkthrough-k8s", FLOWS_REPOSITORY=url, FLOWS_ACCESS_TOKEN=TOKEN_BLOCK)
    assert stored_pull_step(WALKTHROUGH)["access_token"] == TOKEN_BLOCK
    run, log = run_as_a_pod_does(prefect_api, WALKTHROUGH, tmp_path / "pod", git_server)
    assert run.state is not None and run.state.is_completed(), log
    assert git_server.token not in log


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("wrong token", "private/flows.git"),
        ("no such repository", "absent.git"),
        ("no such branch", "no-such-branch"),
    ],
)
def test_a_failed_clone_says_why_in_the_log_of_the_run(
    case: str,
    expected: str,
    prefect_api: str,
    git_server: GitServer,
    flow_repository: Path,
    tmp_path: Path,
) -> None:
    environment = {"FLOWS_REPOSITORY": f"{git_server.url}/absent.git"}
    if case == "wrong token":
        if not (git_server.repositories / "private/flows.git").exists():
            git_server.publish(flow_repository, "private/flows")
        Secret(value="not-the-token").save("git-access-token", overwrite=True)
        environment = {
            "FLOWS_REPOSITORY": f"{git_server.url}/private/flows.git",
            "FLOWS_ACCESS_TOKEN": TOKEN_BLOCK,
        }
    elif case == "no such branch":
        url = git_server.publish(flow_repository, "branches")
        environment = {"FLOWS_REPOSITORY": url, "FLOWS_BRANCH": "no-such-branch"}
    deploy(prefect_api, "walkthrough-k8s", **environment)
    run, log = run_as_a_pod_does(prefect_api, WALKTHROUGH, tmp_path / "pod", git_server)
    assert run.state is not None
    assert run.state.is_crashed() or run.state.is_failed(), log
    assert re.search(rf"Failed to clone repository.*{expected}|{expected}.*not found", log), log
    assert "not-the-token" not in log
