"""`python -m bootstrap register`: clones the flow repository, registers its deployments."""

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


def register(*names: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code and output of the command, with what the image has on its path."""
    done = subprocess.run(
        [sys.executable, "-m", "bootstrap", "register", *names],
        cwd=folder,
        env={**environment, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'images/flows'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def register_walkthrough(
    api_url: str, git_server: GitServer, folder: Path, **environment: str
) -> tuple[int, str]:
    """Register at a real server."""
    with contextlib.suppress(ObjectAlreadyExists), get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="kubernetes", type="kubernetes"))
    known = prefect_environment(
        api_url,
        GIT_SSL_CAINFO=str(git_server.certificate),
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **environment,
    )
    return register("walkthrough-k8s", folder=folder, environment=known)


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

    code, output = register_walkthrough(
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
            "refuses the credential",
        ),
        ("register-absent", {"FLOWS_REF": 40 * "a"}, f"it has no commit {40 * 'a'}"),
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

    code, output = register_walkthrough(
        prefect_api, git_server, tmp_path, FLOWS_REPOSITORY=url, **environment
    )

    assert code == 1
    last = output.splitlines()[-1]
    assert last.startswith(f"bootstrap: Cannot clone {url} at {environment['FLOWS_REF']}: ")
    assert cause in last
    assert "Traceback" not in output
    assert "not-the-token" not in output


@pytest.mark.parametrize("ref", ["main", "v1", "HEAD"])
def test_prefect_yaml_gets_the_reference_and_deploy_the_names(
    ref: str, flow_repository: Path, tmp_path: Path
) -> None:
    git("tag", "v1", cwd=flow_repository)
    if ref == "HEAD":
        ref = git("rev-parse", "HEAD", cwd=flow_repository)
    program = tmp_path / "prefect"
    program.write_text('#!/bin/sh\necho "branch=$FLOWS_BRANCH commit=$FLOWS_COMMIT" "$@"\n')
    program.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FLOWS_")} | {
        "FLOWS_REPOSITORY": f"file://{flow_repository}",
        "FLOWS_REF": ref,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }
    code, output = register("*-k8s", "nightly", folder=tmp_path, environment=environment)
    assert code == 0, output
    given = f"branch={ref} commit=" if len(ref) < 40 else f"branch= commit={ref}"
    assert f"{given} --no-prompt deploy --name *-k8s --name nightly" in output


def test_a_repository_without_prefect_yaml_is_told(tmp_path: Path) -> None:
    source = tmp_path / "source"
    git("init", "--quiet", "--initial-branch=main", str(source))
    git("commit", "--quiet", "--allow-empty", "-m", "Nothing", cwd=source)
    url = f"file://{source}"
    environment = {**os.environ, "FLOWS_REPOSITORY": url, "FLOWS_REF": "main"}
    code, output = register("nightly", folder=tmp_path, environment=environment)
    assert (code, output) == (
        1,
        f"Cloned {url} at main.\nbootstrap: {url} at main has no prefect.yaml.\n",
    )


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    known = {k: v for k, v in os.environ.items() if not k.startswith("FLOWS_")}
    known["FLOWS_REF"] = "main"
    code, output = register("nightly", folder=tmp_path, environment=known)
    assert (code, output.count("\n")) == (1, 1), output
    assert output.startswith("bootstrap: FLOWS_REPOSITORY is not set")


def test_outside_of_its_image_it_says_what_to_do() -> None:
    command = [sys.executable, "-m", "bootstrap", "register", "nightly"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "use `prefect deploy`" in done.stderr


def test_schedules_that_prefect_yaml_ends_are_ended(
    prefect_api: str, git_server: GitServer, flow_repository: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    git("clone", "--quiet", str(flow_repository), str(repository))
    text = (repository / "prefect.yaml").read_text()
    tags = "tags: [walkthrough]\n"

    def schedules_after(written: str, name: str) -> int:
        changed = text.replace(tags, f"{tags}      schedules: {written}\n")
        (repository / "prefect.yaml").write_text(changed)
        git("commit", "--quiet", "--all", "--message", name, cwd=repository)
        code, output = register_walkthrough(
            prefect_api,
            git_server,
            tmp_path,
            FLOWS_REPOSITORY=git_server.publish(repository, name),
            FLOWS_REF=git("branch", "--show-current", cwd=repository),
            # As the chart sets it for the bootstrap.
            PREFECT_DEPLOYMENTS_CLEAR_SCHEDULES_ON_EMPTY="true",
        )
        assert code == 0, output
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("ui-walkthrough-retries/walkthrough-k8s")
        return len(deployment.schedules)

    assert schedules_after("[{interval: 3600}]", "schedules-one") == 1
    assert schedules_after("[]", "schedules-none") == 0
