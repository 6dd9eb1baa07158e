"""The bootstrap registers several repositories, none of which can harm another."""

import asyncio
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer.testing
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_hamilton.bootstrap import register_deployments
from prefect_hamilton.bootstrap.__main__ import app
from prefect_hamilton.bootstrap.apply import apply
from prefect_hamilton.bootstrap.errors import BootstrapError
from prefect_hamilton.bootstrap.register_deployments import Flows
from prefect_hamilton.bootstrap.repositories import choose, load_repositories
from tests import forks
from tests.deployments.git_server import TOKEN, GitServer, git, prefect_environment
from tests.profiles import wait_until

pytestmark = pytest.mark.services

FLOW = "from prefect import flow\n\n@flow(name='{name}')\ndef work(n: int = 1):\n    return n\n"
CLONE = {
    "repository": "{{ $FLOWS_REPOSITORY }}",
    "branch": "{{ $FLOWS_BRANCH }}",
    "access_token": "{{ $FLOWS_ACCESS_TOKEN }}",
    "id": "clone",
}
PULL = [
    {"prefect.deployments.steps.git_clone": CLONE},
    {
        "prefect.deployments.steps.set_working_directory": {
            "directory": "{{ clone.directory }}/{{ $FLOWS_PATH }}"
        }
    },
]
BLOCK = {
    "name": "git-access-token-b",
    "type": "secret",
    "values": {"value": {"from_env": "GIT_ACCESS_TOKEN_B"}},
}

EVENT = {"type": "event", "posture": "Reactive", "expect": ["x"], "threshold": 1}
NOTHING = {"type": "do-nothing"}

Commit = Callable[..., None]
Bootstrap = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def client(prefect_api: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: prefect_api}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def commit(git_server: GitServer, tmp_path: Path) -> Commit:
    """Return what writes the deployments of a repository and pushes them to the Git server."""

    def write(
        name: str,
        *deployments: str,
        pool: str = "",
        path: str = ".",
        flow: str = "",
        state: dict[str, Any] | None = None,
        more: dict[str, list[str]] | None = None,
    ) -> None:
        folder = tmp_path / name
        bare = git_server.repositories / f"{name}.git"
        below = folder / path
        below.mkdir(parents=True, exist_ok=True)
        (below / "work.py").write_text(FLOW.format(name=flow or name.rpartition("/")[2]))
        for file, names in {"prefect.yaml": deployments, **(more or {})}.items():
            entries = [
                {
                    "name": each,
                    "entrypoint": "work.py:work",
                    "work_pool": {"name": pool or name.rpartition("/")[2]},
                    "pull": PULL,
                }
                for each in names
            ]
            (below / file).write_text(yaml.safe_dump({"deployments": entries}))
        (below / "prefect-state.yaml").write_text(yaml.safe_dump(state or {}))
        git("init", "--quiet", "--initial-branch=main", cwd=folder)
        git("add", ".", cwd=folder)
        git("commit", "--quiet", "--allow-empty", "-m", "Flows", cwd=folder)
        if not bare.exists():
            git("init", "--quiet", "--bare", "--initial-branch=main", str(bare))
        git("push", "--quiet", "--force", str(bare), "main", cwd=folder)

    return write


@pytest.fixture
def bootstrap(prefect_api: str, git_server: GitServer, tmp_path: Path) -> Bootstrap:
    def run(
        entries: dict[str, dict[str, Any]],
        *options: str,
        command: str = "apply",
        code: int = 0,
        release: dict[str, Any] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "repositories.yaml"
        file.write_text(yaml.safe_dump(entries))
        state = tmp_path / "state.yaml"
        pools = [{"name": name, "type": "process"} for name in ("a", "b")]
        content = {"work_pools": pools, "blocks": [BLOCK]} | (release or {})
        state.write_text(yaml.safe_dump(content))
        done = forks.run(
            "prefect_hamilton.bootstrap",
            *(command, "--file", state, "--repositories", file),
            *("--release", f"ns/{tmp_path.name}", *options),
            env=prefect_environment(
                prefect_api,
                GIT_SSL_CAINFO=str(git_server.certificate),
                GIT_ACCESS_TOKEN_B=TOKEN,
                SLACK_URL="https://hooks.example.org/x",
            ),
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def team(prefect_api: str, git_server: GitServer, tmp_path: Path) -> Bootstrap:
    """Return the bootstrap as a team's pipeline runs it, with the name of its repository."""

    def run(
        command: str, repository: str, code: int = 0, **env: str
    ) -> subprocess.CompletedProcess[str]:
        done = forks.run(
            "prefect_hamilton.bootstrap",
            *(command, "--repository-only", "--repository", repository),
            *("--release", f"ns/{tmp_path.name}"),
            env=prefect_environment(prefect_api, GIT_SSL_CAINFO=str(git_server.certificate), **env),
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def exists(client: SyncPrefectClient, name: str) -> bool:
    try:
        client.read_deployment_by_name(name)
    except ObjectNotFound:
        return False
    return True


def test_repositories_are_registered_and_removed_one_without_the_other(
    client: SyncPrefectClient,
    git_server: GitServer,
    commit: Commit,
    bootstrap: Bootstrap,
    team: Bootstrap,
) -> None:
    a = {"url": f"{git_server.url}/a.git", "pools": ["a"], "tags": ["team-a"]}
    token = {"GIT_ACCESS_TOKEN": {"from_env": "GIT_ACCESS_TOKEN_B"}}
    reference = "{{ prefect.blocks.secret.git-access-token-b }}"
    b = {
        "url": f"{git_server.url}/private/b.git",
        "path": "teams/b",
        "pools": ["b"],
        "environment": token | {"FLOWS_ACCESS_TOKEN": reference},
    }
    commit("a", "one", "two")
    commit("private/b", "one", path="teams/b", state={"variables": [{"name": "of_b", "value": 1}]})

    plan = bootstrap({"a": a, "b": b}, "--no-prune", command="plan", code=2).stdout.splitlines()
    assert {"+ deployment a/one", "+ deployment b/one"} <= set(plan)

    bootstrap({"a": a, "b": b})
    assert client.read_deployment_by_name("a/one").tags == ["team-a"]
    of_b = client.read_deployment_by_name("b/one")
    assert of_b.tags == []
    clone, folder = of_b.pull_steps or []
    cloned = clone["prefect.deployments.steps.git_clone"]
    assert (cloned["repository"], cloned["branch"]) == (b["url"], "main")
    assert cloned["access_token"] == reference
    step = folder["prefect.deployments.steps.set_working_directory"]
    assert step["directory"] == "{{ clone.directory }}/teams/b"
    # A plan of one repository, as the pipeline of its team runs it: it has the same settings.
    alone = ("--repository-only", "--repository", "a")
    assert bootstrap({"a": a, "b": b}, *alone, command="plan").stdout.count("\n") == 1
    assert team("plan", "a").stdout.count("\n") == 1
    assert team("plan", "b", GIT_ACCESS_TOKEN=TOKEN).stdout.count("\n") == 1
    gone = team("plan", "c", code=1).stderr
    assert "--repository c: the record of --release has no such repository, only a, b: " in gone

    # A repository that cannot be cloned keeps what it has, and the other is registered.
    commit("a", "one")
    commit("private/b", "one", "more", path="teams/b")
    failed = bootstrap({"a": a, "b": b | {"ref": "gone"}}, code=1)
    assert not exists(client, "a/two")
    assert exists(client, "b/one")
    assert client.read_variable_by_name("of_b") is not None
    (line,) = [each for each in failed.stderr.splitlines() if each.startswith("bootstrap: ")]
    assert line.startswith("bootstrap: repository b: Cannot clone ")
    assert line.endswith("correct flows.repositories.b.ref in the chart's values.")

    # A deployment of a pool that is not its own: nothing of the repository is registered.
    commit("a", "one", "stolen", pool="b")
    failed = bootstrap({"a": a, "b": b}, code=1)
    assert "repository a: prefect.yaml: deployment one has the work pool b" in failed.stderr
    assert not exists(client, "a/stolen")
    assert client.read_deployment_by_name("a/one").work_pool_name == "a"
    assert exists(client, "b/more")

    # A deployment of the other repository: it stays as it is, also while that one is away.
    commit("a", "one", flow="b")
    for entries in ({"a": a, "b": b}, {"a": a, "b": b | {"ref": "gone"}}):
        failed = bootstrap(entries, code=1)
        said = "repository a: deployment b/one is also defined by repository b: rename or remove"
        assert said in failed.stderr
        assert client.read_deployment_by_name("b/one").work_pool_name == "b"

    # A deployment that moves to a repository which is registered before the one that had it.
    commit("a", "more", flow="b")
    commit("private/b", "one", path="teams/b", state={"variables": [{"name": "of_b", "value": 1}]})
    bootstrap({"a": a, "b": b})
    assert client.read_deployment_by_name("b/more").work_pool_name == "a"

    # One that leaves the map: its objects go, unless prune was false.
    commit("a", "one")
    bootstrap({"a": a, "b": b | {"prune": False}})
    commit("private/b", "more", path="teams/b", pool="b", flow="c")
    team("apply", "b", GIT_ACCESS_TOKEN=TOKEN)
    assert exists(client, "b/one")
    commit("private/b", "one", path="teams/b", state={"variables": [{"name": "of_b", "value": 1}]})
    bootstrap({"a": a})
    assert exists(client, "b/one")
    bootstrap({"a": a, "b": b})
    bootstrap({"a": a})
    assert not exists(client, "b/one")
    assert client.read_variable_by_name("of_b") is None
    assert exists(client, "a/one")


def test_a_deployment_that_is_defined_twice_is_refused_with_both_places(
    client: SyncPrefectClient, git_server: GitServer, commit: Commit, bootstrap: Bootstrap
) -> None:
    entry = {"url": f"{git_server.url}/d.git", "path": "teams", "pools": ["a"]}
    commit("d", "one", "two", "one", pool="a", path="teams")
    refused = bootstrap({"d": entry}, code=1).stderr
    said = "repository d: prefect.yaml: deployments.0 and prefect.yaml: deployments.2 are the same"
    assert f"{said} deployment, d/one: rename or remove one of them." in refused
    assert not exists(client, "d/two")
    assert not exists(client, "d/two")
    # In two files.
    commit("d", "one", pool="a", path="teams", more={"more.yaml": ["one"]})
    files = {"prefect_files": ["prefect.yaml", "m*.yaml"]}
    refused = bootstrap({"d": entry | files}, code=1).stderr
    assert "d: prefect.yaml: deployments.0 and more.yaml: deployments.0 are the same" in refused


@pytest.mark.parametrize(
    ("theirs", "key"),
    [
        ({"variables": [{"name": "of_release", "value": 2}]}, "variable of_release"),
        (
            {"automations": [{"name": "alert-late", "trigger": EVENT, "actions": [NOTHING]}]},
            "automation alert-late",
        ),
    ],
)
def test_a_repository_cannot_take_over_what_the_release_itself_names(
    client: SyncPrefectClient,
    git_server: GitServer,
    commit: Commit,
    bootstrap: Bootstrap,
    theirs: dict[str, Any],
    key: str,
) -> None:
    slack = {"type": "slack", "secrets": {"url": {"from_env": "SLACK_URL"}}}
    release = {
        "variables": [{"name": "of_release", "value": 1}],
        "alerts": {"channels": {"ops": slack}},
    }
    entries = {"c": {"url": f"{git_server.url}/c.git", "pools": ["a"]}}
    commit("c", "one", pool="a", state=theirs)
    said = f"bootstrap: repository c: {key} belongs to the release itself, whose state or alerts"
    for command in ("apply", "plan", "apply"):
        failed = bootstrap(entries, command=command, code=1, release=release)
        assert said in failed.stderr
        assert " updated" not in failed.stdout or " 0 updated" in failed.stdout
    # The plan of the team, which has no files of the release.
    alone = ("--repository-only", "--repository", "c")
    assert said in bootstrap(entries, *alone, command="plan", code=1).stderr
    variable = client.read_variable_by_name("of_release")
    assert variable is not None
    assert variable.value == 1
    (alert,) = client._client.post(
        "/automations/filter", json={"automations": {"name": {"any_": ["alert-late"]}}}
    ).json()
    assert alert["trigger"]["posture"] == "Proactive"


def test_what_the_server_refuses_keeps_nothing_else_from_being_applied(
    client: SyncPrefectClient, git_server: GitServer, commit: Commit, bootstrap: Bootstrap
) -> None:
    def automation(name: str, *actions: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, "trigger": EVENT, "actions": [*actions, NOTHING]}

    entries = {
        name: {"url": f"{git_server.url}/{name}.git", "pools": ["a"]} for name in ("e", "f", "g")
    }
    commit("g", "one", "two", pool="a")
    bootstrap({"g": entries["g"]})
    commit("g", "one", pool="a")
    # Prefect's client accepts both: the server knows the work pool, and the size of its numbers.
    refused = {
        "type": "run-deployment",
        "deployment": "g/one",
        "job_variables": {"stream_output": "loud"},
    }
    automations = [automation("refused-of-e", refused), automation("of-e")]
    commit("e", "one", pool="a", state={"automations": automations})
    limit = {"name": "of-f", "limit": 2**70}
    commit("f", "one", pool="a", state={"global_concurrency_limits": [limit]})
    automations = [automation("refused-of-release", refused), automation("of-release")]

    done = bootstrap(entries, code=1, release={"automations": automations})

    lines = [each for each in done.stderr.splitlines() if each.startswith("bootstrap: ")]
    for line, start in zip(
        lines,
        (
            "automation refused-of-release: the server refused POST /api/automations/ (422): ",
            "repository e: automation refused-of-e: the server refused POST /api/automations/ (4",
            "repository f: global concurrency limit of-f: the server refused POST /api/",
        ),
        strict=True,
    ):
        assert line.startswith(f"bootstrap: {start}")
    assert re.search(r"created +automation +of-e\b", done.stdout)
    assert re.search(r"created +automation +of-release\b", done.stdout)
    assert exists(client, "e/one")
    assert exists(client, "g/one")
    assert not exists(client, "g/two")


def test_a_missing_credential_fails_its_own_repository_alone(
    client: SyncPrefectClient, git_server: GitServer, commit: Commit, bootstrap: Bootstrap
) -> None:
    commit("l", "one", pool="a")
    url, secret = f"{git_server.url}/private/b.git", {"secret": "git-j", "key": "token"}
    token = {"GIT_ACCESS_TOKEN": {"from_env": "GIT_ACCESS_TOKEN_J"}}
    entries = {
        "j": {"url": url, "environment": token, "credential": secret},
        "k": {"url": url, "credential": secret | {"folder": "/not/there"}},
        "l": {"url": f"{git_server.url}/l.git", "pools": ["a"]},
    }
    block = {
        "name": "git-access-token-j",
        "type": "secret",
        "optional": True,
        "values": {"value": {"from_env": "GIT_ACCESS_TOKEN_J"}},
    }
    done = bootstrap(entries, code=1, release={"blocks": [block]})
    assert [each for each in done.stderr.splitlines() if each.startswith("bootstrap: ")] == [
        "bootstrap: repository j: GIT_ACCESS_TOKEN_J is not set: create the Secret git-j with the "
        "key token in the namespace of the release.",
        "bootstrap: repository k: /not/there/token does not exist: create the Secret git-j with "
        "the key token in the namespace of the release.",
    ]
    assert exists(client, "l/one")


def test_a_repository_that_takes_too_long_keeps_no_other_one_waiting(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register_deployments, "CLONE_SECONDS", 1.0)
    monkeypatch.setattr(register_deployments, "DEPLOY_SECONDS", 2.0)
    monkeypatch.setitem(register_deployments.SILENCE, "GIT_HTTP_LOW_SPEED_TIME", "2")

    def checkout(name: str, deployments: list[dict[str, Any]], state: dict[str, Any]) -> Flows:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "prefect.yaml").write_text(yaml.safe_dump({"deployments": deployments}))
        (folder / "prefect-state.yaml").write_text(yaml.safe_dump(state))
        (folder / "work.py").write_text("import threading\n\nthreading.Event().wait()\n")
        return Flows(folder.as_uri(), "main", ("*",), name=name, checkout=folder)

    deployment = {"name": "one", "entrypoint": "work.py:work", "work_pool": {"name": "a"}}
    stuck = checkout("h-stuck", [deployment], {})
    well = checkout("i-well", [], {"variables": [{"name": "of_i", "value": 1}]})
    with socket.create_server(("127.0.0.1", 0)) as server:  # which accepts and never answers
        silent = f"http://127.0.0.1:{server.getsockname()[1]}/silent.git"
        repositories = [Flows(silent, "main", ("*",), name="h-silent"), stuck, well]
        done = apply(None, report=lambda change: None, repositories=repositories)
        assert asyncio.run(done).failures == [
            f"repository h-silent: Cannot clone {silent} at main: it takes more than 1 s; find out "
            "whether the Git server answers.",
            f"repository h-stuck: prefect deploy has not ended after 2 s in the clone of "
            f"{stuck.address}: mend the flow whose import, or the build step, takes so long.",
        ]
        assert client.read_variable_by_name("of_i") is not None
        assert not any(tmp_path.name in each for each in processes())
        wait_until(lambda: not any(silent in each for each in processes()))


def processes() -> list[str]:
    """Return the folder and the command of each process."""
    found = psutil.process_iter(["cwd", "cmdline"])
    return [f"{each.info['cwd']} {each.info['cmdline']}" for each in found]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": {"url": "file:///a", "path": "../b"}}, "a.path: Value error, must be a path below"),
        ({"a": {"url": "file:///a", "pool": "b"}}, "a.pool: Extra inputs"),
        ({"a": {}}, "a.url: Field required"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place(
    tmp_path: Path, content: dict[str, Any], said: str
) -> None:
    file = tmp_path / "repositories.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(BootstrapError, match=f"{file}: {said}"):
        load_repositories(file)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--repository b needs its settings: name the release whose record has them"),
        (["--release", "r", "--deployment", "*"], "the record has those of b"),
    ],
)
def test_a_repository_needs_its_settings(options: list[str], said: str) -> None:
    command = ["plan", "--repository-only", "--repository", "b", *options]
    done = typer.testing.CliRunner().invoke(app, command, env={"BOOTSTRAP_RELEASE": None})
    assert done.exit_code == 1
    assert said in done.output


def test_a_checkout_needs_the_name_of_its_repository(tmp_path: Path) -> None:
    file = tmp_path / "repositories.yaml"
    file.write_text(yaml.safe_dump({"b": {"url": "file:///b"}, "a": {"url": "file:///a"}}))
    both = load_repositories(file)
    assert [each.name for each in choose(both, "", None)] == ["a", "b"]
    (chosen,) = choose(both, "b", tmp_path)
    assert (chosen.name, chosen.checkout) == ("b", tmp_path)
    with pytest.raises(BootstrapError, match="--checkout needs --repository: name one of a, b"):
        choose(both, "", tmp_path)
    with pytest.raises(BootstrapError, match="--repository c: there is no such repository"):
        choose(both, "c", None)
