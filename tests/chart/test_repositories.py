"""Several flows repositories in one release."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from prefect_hamilton.bootstrap.desired_state import DesiredState
from prefect_hamilton.bootstrap.repositories import load_repositories
from tests.chart.charts import Object, Release, RenderError, env, render
from tests.chart.test_flow_pods import flow_job, template

A: Object = {
    "url": "https://git.example.org/a.git",
    "gitCredential": {"existingSecret": "git-a"},
    "pools": ["team-a"],
    "tags": ["team-a"],
}
B: Object = {
    "url": "ssh://git@git.example.org:2222/mono.git",
    "ref": "v1",
    "path": "teams/b",
    "pools": ["team-b"],
    "prune": False,
    "gitCredential": {"existingSecret": "git-b", "type": "ssh"},
}


def values(**repositories: Object) -> Object:
    return {
        "workers": {"team-a": {}, "team-b": {}},
        "flows": {"repositories": repositories},
        "bootstrap": {"schedule": "@daily"},
    }


@pytest.fixture(scope="module")
def both() -> Release:
    return render(values(**{"team-a": A, "team-b": B}))


def test_the_bootstrap_reads_the_repositories(
    both: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "repositories.yaml"
    file.write_text(both.get("ConfigMap", "bootstrap")["data"]["repositories.yaml"])
    monkeypatch.setenv("GIT_ACCESS_TOKEN_TEAM_A", "token-a")
    a, b = load_repositories(file)
    assert (a.name, a.address, a.ref, a.path) == ("team-a", A["url"], "main", ".")
    assert (a.names, a.pools, a.tags, a.prune) == (("*-k8s",), ("team-a",), ("team-a",), True)
    assert a.environment["GIT_ACCESS_TOKEN"] == "token-a"
    reference = "{{ prefect.blocks.secret.git-access-token-team-a }}"
    assert a.environment["FLOWS_ACCESS_TOKEN"] == reference
    assert a.hidden == b.hidden == {"GIT_ACCESS_TOKEN_TEAM_A"}
    assert (b.ref, b.path, b.prune) == ("v1", "teams/b", False)
    assert "/git-credentials/team-b/ssh-privatekey" in b.environment["GIT_SSH_COMMAND"]
    assert "GIT_ACCESS_TOKEN" not in b.environment


@pytest.mark.parametrize("kind", ["Job", "CronJob"])
def test_the_bootstrap_has_the_credential_of_each(both: Release, kind: str) -> None:
    found: Any = both.job("bootstrap") if kind == "Job" else both.get(kind, "-bootstrap")
    spec = found["spec"] if kind == "Job" else found["spec"]["jobTemplate"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert "--repositories=/bootstrap/repositories.yaml" in container["args"]
    assert not [word for word in container["args"] if word.startswith("--deployment")]
    token = {"secretKeyRef": {"name": "git-a", "key": "token", "optional": True}}
    assert env(container)["GIT_ACCESS_TOKEN_TEAM_A"] == token
    assert "GIT_ACCESS_TOKEN" not in env(container)
    (key,) = [each for each in pod["volumes"] if each["name"].startswith("git-credential")]
    assert key["secret"]["secretName"] == "git-b"
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == key["name"]]
    assert mount["mountPath"] == "/git-credentials/team-b"


def test_a_secret_that_is_missing_fails_its_own_repository_alone(
    both: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = both.job("bootstrap")["spec"]["template"]["spec"]
    (volume,) = [each for each in pod["volumes"] if each["name"].startswith("git-credential")]
    assert volume["secret"]["optional"] is True
    state = yaml.safe_load(both.get("ConfigMap", "bootstrap")["data"]["state.yaml"])
    (block,) = [each for each in state["blocks"] if each["name"] == "git-access-token-team-a"]
    assert block["optional"] is True
    file = tmp_path / "repositories.yaml"
    text = both.get("ConfigMap", "bootstrap")["data"]["repositories.yaml"]
    file.write_text(text.replace("/git-credentials/", f"{tmp_path}/"))
    monkeypatch.delenv("GIT_ACCESS_TOKEN_TEAM_A", raising=False)
    assert [each.missing for each in load_repositories(file)] == [
        "GIT_ACCESS_TOKEN_TEAM_A is not set: create the Secret git-a with the key token in the "
        "namespace of the release.",
        f"{tmp_path}/team-b/ssh-privatekey does not exist: create the Secret git-b with the key "
        "ssh-privatekey in the namespace of the release.",
    ]
    monkeypatch.setenv("GIT_ACCESS_TOKEN_TEAM_A", "token-a")
    (tmp_path / "team-b").mkdir()
    (tmp_path / "team-b" / "ssh-privatekey").touch()
    found = load_repositories(file)
    assert [each.missing for each in found] == ["", ""]
    # The record of the release outlives the pod, and a pipeline has neither variable nor file.
    assert not [each for each in found if "credential" in each.recorded]


def test_the_secret_of_a_channel_may_be_missing() -> None:
    channel = {"type": "slack", "existingSecret": "slack"}
    rendered = render({"alerts": {"channels": {"ops": channel}}})
    (container,) = rendered.job("bootstrap")["spec"]["template"]["spec"]["containers"]
    assert env(container)["ALERTS_OPS_URL"]["secretKeyRef"]["optional"] is True


def test_the_token_of_each_has_a_block(both: Release) -> None:
    text = both.get("ConfigMap", "bootstrap")["data"]["state.yaml"]
    state = DesiredState.model_validate(
        {"blocks": yaml.safe_load(text)["blocks"]},
    )
    names = [block.name for block in state.blocks if block.name.startswith("git-access-token")]
    assert names == ["git-access-token-team-a"]


def test_only_the_pods_of_its_pools_have_an_ssh_key(
    both: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://server:4200/api")
    for pool, secrets in (("team-a", []), ("team-b", ["git-b"])):
        pod = flow_job(template(both, pool))["spec"]["template"]["spec"]
        found = [each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each]
        assert found == secrets
        assert ("GIT_SSH_COMMAND" in env(pod["containers"][0])) == bool(secrets)


def test_the_bootstrap_may_connect_to_all_git_servers(both: Release) -> None:
    policy = both.get("NetworkPolicy", "bootstrap")
    ports = {each["port"] for rule in policy["spec"]["egress"] for each in rule["ports"]}
    assert {443, 2222} <= ports


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {
                "flows": {
                    "repository": "https://git.example.org/flows.git",
                    "repositories": {"a": A},
                }
            },
            "flows.repositories replaces flows.repository and gitServer.enabled: set only one",
        ),
        (
            values(a=A | {"pools": ["none"]}),
            "flows.repositories.a.pools: the release has no work pool none: add it to workers.",
        ),
        (
            values(a=A | {"url": "https://user:word@git.example.org/a.git"}),
            "flows.repositories.a.url contains a credential",
        ),
        (
            values(a=B, b=B | {"gitCredential": {"existingSecret": "git-c", "type": "ssh"}}),
            "flows.repositories: a and b have different SSH keys, but share the work pool team-b",
        ),
        (
            values(a=A | {"url": "ssh://git@git.example.org/a.git"}),
            "flows.repositories.a.gitCredential.type: token is for a repository at an https://",
        ),
        (values(a=A | {"path": "../b"}), "repositories/a/path"),
        (values(A=A), "invalid propertyName 'A'"),
        (values(a={}), "url"),
    ],
)
def test_a_mistake_is_refused(changed: Object, said: str) -> None:
    with pytest.raises(RenderError) as refused:
        render(changed)
    assert said in " ".join(str(refused.value).split())
