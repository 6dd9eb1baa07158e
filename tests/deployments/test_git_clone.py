"""The `-k8s` deployments register and their pull step clones from a real Git server."""

import contextlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectAlreadyExists

from tests import forks
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
    command = ("prefect", "deploy", "--name", name, "--no-prompt")
    done = forks.run(*command, env=prefect_environment(api_url, **environment), folder=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass
class PodRun:
    """What became of a flow run and what was said about it."""

    state: State[Any]
    log: list[str]
    """The messages in the run's log on the server."""
    output: str
    """What the pod printed."""

    def __str__(self) -> str:
        return "\n".join([str(self.state), *self.log, self.output])


def run_as_a_pod_does(
    api_url: str, folder: Path, git_server: GitServer, **environment: str
) -> PodRun:
    """Execute a run with a pod's command in an empty folder."""
    folder.mkdir(exist_ok=True)
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(WALKTHROUGH)
        created = client.create_flow_run_from_deployment(deployment.id)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "prefect_hamilton.flow_pod"],
        cwd=folder,
        env=prefect_environment(
            api_url,
            PREFECT__FLOW_RUN_ID=str(created.id),
            PREFECT_LOGGING_LEVEL="DEBUG",
            **{"GIT_SSL_CAINFO": str(git_server.certificate), **environment},
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(created.id).state
        only = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[created.id]))
        log = [line.message for line in client.read_logs(only, limit=200)]
    assert state is not None
    return PodRun(state, log, done.stdout)


def stored_clone_step(deployment: str) -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        (step,) = client.read_deployment_by_name(deployment).pull_steps or []
    return dict(step[GIT_CLONE])


@pytest.fixture
def clone_from_pod_environment(prefect_api: str) -> None:
    """The walkthrough, registered where nothing is set: the pod's environment decides."""
    deploy(prefect_api, "walkthrough-k8s")


def test_all_deployments_register_with_schedules_and_triggers(prefect_api: str) -> None:
    printed = deploy(prefect_api, "*-k8s", FLOWS_REPOSITORY="https://git.example.org/flows.git")
    with get_client(sync_client=True) as client:
        deployments = {d.name: d for d in client.read_deployments() if d.name.endswith("-k8s")}
    assert set(deployments) == {
        "production-etl-k8s",
        "absenteeism-k8s",
        "walkthrough-k8s",
        "after-production-etl-k8s",
    }, printed
    for deployment in deployments.values():
        assert deployment.work_pool_name == "kubernetes"
        (step,) = deployment.pull_steps or []
        assert step[GIT_CLONE]["repository"] == "https://git.example.org/flows.git"
    with get_client(sync_client=True) as client:
        automations = client.request("POST", "/automations/filter", json={}).json()
    (trigger,) = (
        automation["trigger"]
        for automation in automations
        if str(deployments["after-production-etl-k8s"].id) in str(automation["actions"])
    )
    assert [each["prefect.resource.role"] for each in trigger["match_related"]] == [
        "flow",
        "deployment",
    ]
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
    run = run_as_a_pod_does(
        prefect_api, tmp_path, git_server, FLOWS_REPOSITORY=url, **{pinned_by: wanted}
    )
    assert run.state.is_completed(), run


def test_a_private_repository_opens_with_the_token_of_a_block(
    prefect_api: str, git_server: GitServer, flow_repository: Path, tmp_path: Path
) -> None:
    url = git_server.publish(flow_repository, "private/flows")
    Secret(value=git_server.token).save("git-access-token", overwrite=True)
    deploy(prefect_api, "walkthrough-k8s", FLOWS_REPOSITORY=url, FLOWS_ACCESS_TOKEN=TOKEN_BLOCK)
    assert stored_clone_step(WALKTHROUGH) == {"repository": url} | {
        "branch": "{{ $FLOWS_BRANCH }}",
        "commit_sha": "{{ $FLOWS_COMMIT }}",
        "include_submodules": "{{ $FLOWS_SUBMODULES }}",
        "access_token": TOKEN_BLOCK,
    }
    run = run_as_a_pod_does(prefect_api, tmp_path, git_server)
    assert run.state.is_completed(), run
    assert git_server.token not in str(run)


def add_submodule(repository: Path, url: str, commit: str) -> None:
    """Add the commit of another repository as `library`, which the walkthrough then needs."""
    module = f'[submodule "library"]\n\tpath = library\n\turl = {url}\n'
    (repository / ".gitmodules").write_text(module)
    with (repository / "flows/retries_demo.py").open("a") as file:
        file.write("\nfrom pathlib import Path\n")
        file.write('\nassert (Path(__file__).parents[1] / "library/version").exists()\n')
    git("add", "--all", cwd=repository)
    git("update-index", "--add", "--cacheinfo", f"160000,{commit},library", cwd=repository)
    git("commit", "--quiet", "-m", "Library", cwd=repository)


@pytest.mark.parametrize("pinned_by", ["FLOWS_BRANCH", "FLOWS_COMMIT"])
def test_private_submodules_are_cloned_with_the_same_token_on_request(
    pinned_by: str,
    prefect_api: str,
    git_server: GitServer,
    flow_repository: Path,
    tmp_path: Path,
) -> None:
    library = tmp_path / "library"
    git("init", "--quiet", "--initial-branch=main", str(library))
    (library / "version").write_text("1\n")
    git("add", "--all", cwd=library)
    git("commit", "--quiet", "-m", "Version 1", cwd=library)
    commit = git("rev-parse", "HEAD", cwd=library)
    name = pinned_by.lower()
    url = git_server.publish(library, f"private/library-{name}")
    add_submodule(flow_repository, url, commit)
    url = git_server.publish(flow_repository, f"private/with-library-{name}")
    wanted = git("rev-parse", "HEAD", cwd=flow_repository)
    wanted = "main" if pinned_by == "FLOWS_BRANCH" else wanted
    Secret(value=git_server.token).save("git-access-token", overwrite=True)
    registered = {"FLOWS_REPOSITORY": url, "FLOWS_ACCESS_TOKEN": TOKEN_BLOCK, pinned_by: wanted}

    deploy(prefect_api, "walkthrough-k8s", **registered, FLOWS_SUBMODULES="true")
    run = run_as_a_pod_does(prefect_api, tmp_path / "with", git_server)
    assert run.state.is_completed(), run
    assert git_server.token not in str(run)

    deploy(prefect_api, "walkthrough-k8s", **registered)
    run = run_as_a_pod_does(prefect_api, tmp_path / "without", git_server)
    assert not run.state.is_completed()
    assert "AssertionError" in str(run)


@pytest.mark.parametrize(
    ("path", "environment", "cause"),
    [
        ("private/closed", {"FLOWS_ACCESS_TOKEN": "not-the-token"}, "rejects the credential"),
        ("private/locked", {}, "rejects the credential"),
        ("absent", {}, "the repository does not exist"),
        ("public", {"FLOWS_BRANCH": "no-such-branch"}, "it has no branch or tag no-such-branch"),
        ("other", {"FLOWS_COMMIT": 40 * "a"}, f"it has no commit {40 * 'a'}"),
    ],
    ids=["wrong token", "no token", "no such repository", "no such branch", "no such commit"],
)
def test_a_failed_clone_is_reported_in_one_sentence(
    path: str,
    environment: dict[str, str],
    cause: str,
    prefect_api: str,
    git_server: GitServer,
    flow_repository: Path,
    tmp_path: Path,
    clone_from_pod_environment: None,
) -> None:
    if path != "absent":
        git_server.publish(flow_repository, path)
    url = f"{git_server.url}/{path}.git"

    run = run_as_a_pod_does(prefect_api, tmp_path, git_server, FLOWS_REPOSITORY=url, **environment)

    assert run.state.is_crashed(), run
    sentence = run.log[-1]
    assert run.state.message == sentence
    # `git fetch` of a commit does not name the repository.
    where = "the flow repository" if "FLOWS_COMMIT" in environment else url
    assert sentence.startswith(f"Cannot clone {where}: ")
    assert cause in sentence
    assert sentence.endswith(".") and "\n" not in sentence
    assert "not-the-token" not in str(run)
    assert "Traceback" not in str(run)


@pytest.mark.parametrize(
    ("pinned_by", "answers"),
    [("FLOWS_BRANCH", (503, 503)), ("FLOWS_COMMIT", (200, 200, 200, 503, 200, 200, 200, 503))],
)
def test_a_clone_is_retried_after_a_brief_git_server_failure(
    pinned_by: str,
    answers: tuple[int, ...],
    prefect_api: str,
    git_server: GitServer,
    flow_repository: Path,
    tmp_path: Path,
    clone_from_pod_environment: None,
) -> None:
    url = git_server.publish(flow_repository, f"flaky-{pinned_by.lower()}")
    wanted = git("rev-parse", "HEAD", cwd=flow_repository)
    wanted = "main" if pinned_by == "FLOWS_BRANCH" else wanted
    git_server.answer_next(*answers)

    run = run_as_a_pod_does(
        prefect_api, tmp_path, git_server, FLOWS_REPOSITORY=url, **{pinned_by: wanted}
    )

    assert git_server.answers.read_text() == "", "fewer requests than failures"
    assert run.state.is_completed(), run


def test_a_clone_waits_for_a_git_server_longer_than_prefect_does(
    prefect_api: str,
    git_server: GitServer,
    flow_repository: Path,
    tmp_path: Path,
    clone_from_pod_environment: None,
) -> None:
    url = git_server.publish(flow_repository, "restarted")
    prefect_tries, waits = 3, 2
    git_server.answer_next(*(prefect_tries * waits * [503]))

    run = run_as_a_pod_does(prefect_api, tmp_path, git_server, FLOWS_REPOSITORY=url)

    assert git_server.answers.read_text() == "", "fewer requests than failures"
    assert run.state.is_completed(), run
    announced = [line for line in run.log if "Retrying for 120 s in total" in line]
    assert len(announced) == waits
    assert "the Git server does not answer" in announced[0] and "503" in announced[0]


def test_a_git_server_that_stays_unavailable_is_reported(
    prefect_api: str,
    git_server: GitServer,
    flow_repository: Path,
    tmp_path: Path,
    clone_from_pod_environment: None,
) -> None:
    url = git_server.publish(flow_repository, "away")
    git_server.answer_next(*(9 * [503]))

    run = run_as_a_pod_does(
        prefect_api,
        tmp_path,
        git_server,
        FLOWS_REPOSITORY=url,
        PREFECT_HAMILTON_GIT_OUTAGE_SECONDS="0",
    )

    git_server.answer_next()
    assert run.state.is_crashed(), run
    assert f"Cannot clone {url}: the Git server does not answer" in str(run.state.message)
    assert "503" in str(run.state.message)
