"""The bootstrap clones the flows repository and registers its deployments."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import quote
from uuid import uuid4

import pytest
import tenacity
import typer.testing
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists

from prefect_hamilton.bootstrap import desired_state, register_deployments
from prefect_hamilton.bootstrap.__main__ import app
from prefect_hamilton.bootstrap.errors import BootstrapError
from tests import forks
from tests.deployments.git_server import GitServer, git, prefect_environment

pytestmark = pytest.mark.services

NIGHTLY = ["apply", "--repository-only", "--deployment=nightly"]


def register(*names: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code and output of the command, with what the image has on its path."""
    options = (f"--deployment={name}" for name in names)
    command = ("prefect_hamilton.bootstrap", "apply", "--repository-only", *options)
    done = forks.run(*command, env=environment, folder=folder)
    return done.returncode, done.stdout + done.stderr


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
def test_a_clone_is_retried_after_a_brief_git_server_failure(
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
            "rejects the credential",
        ),
        ("register-absent", {"FLOWS_REF": 40 * "a"}, f"it has no commit {40 * 'a'}"),
        (
            "register-short",
            {"FLOWS_REF": "abc1234"},
            "it has no branch or tag abc1234, and a commit must be given as its full SHA",
        ),
        ("register-word", {"FLOWS_REF": "develop"}, "it has no branch or tag develop;"),
    ],
    ids=["wrong token", "no such commit", "short commit", "no such branch"],
)
def test_a_repository_that_cannot_be_cloned_is_reported(
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


@pytest.mark.parametrize("ref", ["main", "v1", "HEAD", "head in capitals"])
def test_the_pull_step_gets_the_reference(
    ref: str, prefect_api: str, git_server: GitServer, flow_repository: Path, tmp_path: Path
) -> None:
    git("tag", "v1", cwd=flow_repository)
    commit = git("rev-parse", "HEAD", cwd=flow_repository)
    url = git_server.publish(flow_repository, f"reference-{ref.replace(' ', '-')}")
    ref = {"HEAD": commit, "head in capitals": commit.upper()}.get(ref, ref)
    code, output = register_walkthrough(
        prefect_api, git_server, tmp_path, FLOWS_REPOSITORY=url, FLOWS_REF=ref
    )
    assert code == 0, output
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("ui-walkthrough-retries/walkthrough-k8s")
    (step,) = deployment.pull_steps or []
    clone = step["prefect.deployments.steps.git_clone"]
    pinned = {"commit_sha": commit} if len(ref) == 40 else {"branch": ref}
    assert {key: clone.get(key) for key in pinned} == pinned


def test_a_repository_without_prefect_yaml_is_reported(prefect_api: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    git("init", "--quiet", "--initial-branch=main", str(source))
    git("commit", "--quiet", "--allow-empty", "-m", "Nothing", cwd=source)
    url = f"file://{source}"
    environment = prefect_environment(prefect_api, FLOWS_REPOSITORY=url, FLOWS_REF="main")
    code, output = register("nightly", folder=tmp_path, environment=environment)
    assert (code, output) == (
        1,
        f"Cloned {url} at main.\nbootstrap: {url} at main has no prefect.yaml.\n",
    )


def test_missing_resources_are_reported(tmp_path: Path) -> None:
    known = {k: v for k, v in os.environ.items() if not k.startswith("FLOWS_")}
    known["FLOWS_REF"] = "main"
    code, output = register("nightly", folder=tmp_path, environment=known)
    assert (code, output.count("\n")) == (1, 1), output
    assert output.startswith("bootstrap: FLOWS_REPOSITORY is not set")


@pytest.mark.parametrize(
    ("repository", "ref", "cause"),
    [
        ("https://git.example.org/flows.git", "-x", "Branch names cannot start with '-'"),
        ("https://[git/flows.git", "main", "Invalid IPv6 URL"),
    ],
)
def test_an_unsupported_repository_address_is_reported_in_one_sentence(
    repository: str, ref: str, cause: str, prefect_api: str, tmp_path: Path
) -> None:
    environment = prefect_environment(prefect_api, FLOWS_REPOSITORY=repository, FLOWS_REF=ref)
    code, output = register("nightly", folder=tmp_path, environment=environment)
    assert (code, output) == (1, f"bootstrap: Cannot clone {repository} at {ref}: {cause}.\n")


def test_a_token_for_an_address_without_tls_is_reported_as_unused(
    prefect_api: str, git_server: GitServer, flow_repository: Path, tmp_path: Path
) -> None:
    git_server.publish(flow_repository, "private/register-http")
    url = f"{git_server.http_url}/private/register-http.git"

    code, output = register_walkthrough(
        prefect_api,
        git_server,
        tmp_path,
        FLOWS_REPOSITORY=url,
        FLOWS_REF="main",
        GIT_ACCESS_TOKEN=git_server.token,
    )

    assert code == 1
    first, *_, last = output.splitlines()
    assert first == (
        "GIT_ACCESS_TOKEN is not used: Prefect sends a token only to an https:// address, "
        f"and FLOWS_REPOSITORY is {url}."
    )
    assert last == (
        f"bootstrap: Cannot clone {url} at main: the Git server requires a credential, but Prefect "
        "sends a token only to an https:// address; correct flows.repository in the chart's values."
    )
    assert git_server.token not in output


def test_an_ambiguous_submodules_setting_is_refused(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "FLOWS_REPOSITORY": "https://git.example.org/flows.git",
        "FLOWS_REF": "main",
        "FLOWS_SUBMODULES": "false",
    }
    code, output = register("nightly", folder=tmp_path, environment=environment)
    assert (code, output) == (1, "bootstrap: FLOWS_SUBMODULES must be true or unset.\n")


@pytest.fixture(scope="module")
def module() -> Iterator[ModuleType]:
    """What registers, imported as in its image; a failure is not tried again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(register_deployments.pull.retry, "stop", tenacity.stop_after_attempt(1))
        yield register_deployments


# Two words around what people forget to percent-encode: neither may appear.
passwords = st.text(alphabet="%@/#?:[]&='\"<> äß漢\U0001f511", max_size=6).map(
    lambda between: f"hunter{between}zebra"
)


@example("https", "hunter@zebra")
@example("http", "hunter/zebra")
@example("ssh", "hunter:zebra")
@example("", "hunter@zebra")
@given(scheme=st.sampled_from(["https", "HTTP", "ssh", "git", ""]), password=passwords)
@settings(max_examples=200, deadline=None)
def test_an_address_with_a_credential_is_refused_without_quoting_it(
    module: ModuleType, scheme: str, password: str
) -> None:
    start = f"{scheme}://" if scheme else ""
    environment = {
        "FLOWS_REPOSITORY": f"{start}robot:{password}@git.invalid/flows.git",
        "FLOWS_REF": "main",
        "GIT_ACCESS_TOKEN": password,
    }
    done = typer.testing.CliRunner().invoke(app, NIGHTLY, env=environment)
    assert done.exit_code == 1
    assert done.output.startswith("bootstrap: FLOWS_REPOSITORY contains a credential")
    assert done.output.count("\n") == 1
    for word in ("robot", "hunter", "zebra"):
        assert word not in done.output


@pytest.mark.parametrize(
    "repository",
    [
        "https://git.example.org:8443/team/flows.git",
        "git@git.example.org:team/flows.git",
        "ssh://git@git.example.org:22/team/flows.git",
        "file:///srv/flows@2.git",
    ],
)
def test_an_ssh_user_name_is_not_a_credential(module: ModuleType, repository: str) -> None:
    assert not module.holds_credential(repository)


@given(token=passwords)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_refused_token_is_not_shown(
    module: ModuleType,
    prefect_api: str,
    git_server: GitServer,
    token: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    environment = {
        "PREFECT_API_URL": prefect_api,
        "FLOWS_REPOSITORY": f"{git_server.url}/private/none.git",
        "FLOWS_REF": "main",
        "GIT_ACCESS_TOKEN": token,
        "GIT_SSL_CAINFO": str(git_server.certificate),
        "GIT_TERMINAL_PROMPT": "0",
    }
    done = typer.testing.CliRunner().invoke(app, NIGHTLY, env=environment)
    output = done.output + "".join(capfd.readouterr())
    assert done.exit_code == 1
    assert "rejects the credential" in output
    for word in ("hunter", "zebra", quote(token, safe="")):
        assert word not in output


def test_the_state_file_of_the_flows_is_applied_with_them(
    prefect_api: str, git_server: GitServer, flow_repository: Path, tmp_path: Path
) -> None:
    name = f"of_the_repository_{uuid4().hex}"
    state = {"variables": [{"name": name, "value": 7}]}
    (flow_repository / "prefect-state.yaml").write_text(yaml.safe_dump(state))
    git("add", "prefect-state.yaml", cwd=flow_repository)
    git("commit", "--quiet", "-m", "State", cwd=flow_repository)
    url = git_server.publish(flow_repository, "with-state")

    code, output = register_walkthrough(
        prefect_api, git_server, tmp_path, FLOWS_REPOSITORY=url, FLOWS_REF="main"
    )

    assert code == 0, output
    assert re.search(rf"created +variable +{name}", output)
    with get_client(sync_client=True) as client:
        variable = client.read_variable_by_name(name)
    assert variable is not None
    assert variable.value == 7


def test_the_state_file_of_a_repository_cannot_read_bootstrap_secrets(tmp_path: Path) -> None:
    path = tmp_path / "prefect-state.yaml"
    secret = {"name": "a", "type": "secret", "values": {"value": {"from_env": "WAREHOUSE_URL"}}}
    path.write_text(yaml.safe_dump({"blocks": [secret]}))
    with pytest.raises(BootstrapError, match=r"^prefect-state\.yaml: blocks: a flows repository"):
        desired_state.load_repository(path)
