"""Two teams in one release: each has a namespace, a warehouse, a repository and a project.

A second release, so that the one of the other tests stays as it is.
"""

import json
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import s3
from tests.cluster.conftest import CHART, forward_uis, needs_kind
from tests.clusters import Cluster, eventually
from tests.deployments.git_server import git
from tests.services import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200), needs_kind]

NAMESPACE = "platform"
RELEASE = "teams-prefect-hamilton"
TEAMS = ("team-a", "team-b")
OTHER = {"team-a": "team-b", "team-b": "team-a"}
SERVER_IMAGE = "prefect-hamilton/prefect:0.1.0"
POSTGRES_IMAGE = "postgres:17"
each_team = pytest.mark.parametrize("team", TEAMS)

FLOW = '''
"""Loads into the team's warehouse, and says what else it reaches."""

from prefect import flow, task
from prefect.cache_policies import INPUTS


@task(cache_policy=INPUTS, log_prints=True)
def square(number: int) -> int:
    print("Computed the square")
    return number * number


@flow(name="load-TEAM", log_prints=True)
def load(targets: list[str] | None = None) -> None:
    import os
    import socket

    import psycopg
    import s3fs
    import totals
    from prefect_hamilton import dataflow

    print(f"The square is {square(7)}")
    for bucket in ("results-team-a", "results-team-b"):
        try:
            print(f"Listed {bucket}: {s3fs.S3FileSystem().ls(bucket)}")
        except PermissionError:
            print(f"Forbidden {bucket}")

    with psycopg.connect(os.environ["WAREHOUSE_URL"]) as connection:
        (database,) = connection.execute("SELECT current_database()").fetchone()
    print(f"Warehouse {database}")
    print(f"Total {dataflow.execute(totals, 'total', inputs={'count': 3})['total']}")
    for target in targets or []:
        host, _, port = target.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=4).close()
        except OSError as error:
            print(f"Closed {target} ({error})")
        else:
            print(f"Reached {target}")
    print("Looked everywhere")
'''
TOTALS = '''
"""A dataflow, so that the run is in the Hamilton UI."""


def total(count: int) -> int:
    return sum(range(count))
'''
PREFECT_YAML = """
name: TEAM
pull:
  - prefect.deployments.steps.git_clone:
      repository: "{{ $FLOWS_REPOSITORY }}"
      branch: "{{ $FLOWS_BRANCH }}"
deployments:
  - name: load-k8s
    entrypoint: flow.py:load
    work_pool: {name: TEAM}
"""
INTO_THE_OTHER_POOL = """
  - name: intruder-k8s
    entrypoint: flow.py:load
    work_pool: {name: POOL}
"""
READ_SECRETS = """
import pathlib, ssl, sys, urllib.error, urllib.request
folder = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
bearer = {"Authorization": "Bearer " + (folder / "token").read_text()}
for namespace in sys.argv[1:]:
    url = f"https://kubernetes.default.svc/api/v1/namespaces/{namespace}/secrets/warehouse"
    try:
        status = urllib.request.urlopen(
            urllib.request.Request(url, headers=bearer), context=context, timeout=20
        ).status
    except urllib.error.HTTPError as error:
        status = error.code
    print(namespace, status)
"""
BUCKETS = f"http://s3.{NAMESPACE}:7070"
CONFINED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def kubectl(cluster: Cluster, namespace: str, *arguments: str, check: bool = True) -> str:
    return cluster.run("kubectl", "--namespace", namespace, *arguments, check=check)


def apply(cluster: Cluster, namespace: str, folder: Path, *objects: dict[str, Any]) -> None:
    file = folder / "objects.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    kubectl(cluster, namespace, "apply", "-f", str(file))


def pod(name: str, port: int, container: dict[str, Any], **spec: Any) -> list[dict[str, Any]]:
    """A pod of one container and the Service in front of it."""
    probe = {"tcpSocket": {"port": port}, "periodSeconds": 1}
    labels = {"app": name}
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "automountServiceAccountToken": False,
                "containers": [
                    {"name": name, "securityContext": CONFINED, "readinessProbe": probe} | container
                ],
            }
            | spec,
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": labels, "ports": [{"port": port}]},
        },
    ]


def secret(name: str, **keys: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": keys}


def warehouse(team: str) -> list[dict[str, Any]]:
    """A team's PostgreSQL, and the Secret with its URL."""
    word = secrets.token_hex(12)
    url = f"postgresql://postgres:{word}@warehouse.{team}:5432/{team}"
    variables = {"POSTGRES_DB": team, "POSTGRES_PASSWORD": word, "PGDATA": "/data/pgdata"}
    container = {
        "image": POSTGRES_IMAGE,
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "run", "mountPath": "/var/run/postgresql"},
        ],
    }
    volumes = [{"name": "data", "emptyDir": {}}, {"name": "run", "emptyDir": {}}]
    user = {"runAsUser": 999, "runAsGroup": 999, "fsGroup": 999}
    return [
        secret("warehouse", url=url),
        secret(f"private-{team}", word=word),
        *pod("warehouse", 5432, container, volumes=volumes, securityContext=user),
    ]


def git_server() -> list[dict[str, Any]]:
    """A Git server with an empty repository for each team."""
    new = "; ".join(f"git init -q --bare -b main /tmp/git/{team}.git" for team in TEAMS)
    serve = f"{new}; exec git daemon --export-all --base-path=/tmp/git"
    container = {"image": SERVER_IMAGE, "args": ["sh", "-ec", serve]}
    return pod("git", 9418, container, securityContext={"runAsUser": 1001})


def bucket(team: str, secret_key: str) -> dict[str, Any]:
    """The Secret with the credential of the team's bucket."""
    keys = {"AWS_ACCESS_KEY_ID": team, "AWS_SECRET_ACCESS_KEY": secret_key}
    return secret("bucket", AWS_ENDPOINT_URL=BUCKETS, AWS_REGION="us-east-1", **keys)


def s3_server(root: str) -> list[dict[str, Any]]:
    """An S3 server with users."""
    variables = {"ROOT_ACCESS_KEY": "root", "ROOT_SECRET_KEY": root}
    container = {
        "image": SERVER_IMAGE,
        "args": ["sh", "-c", s3.SERVE],
        "env": [{"name": name, "value": value} for name, value in variables.items()],
    }
    return pod("s3", 7070, container, securityContext={"runAsUser": 1001})


def give_bucket(cluster: Cluster, team: str, secret_key: str) -> None:
    """Create the team's user and its bucket."""
    admin = 'exec /tmp/versitygw admin -a root -s "$ROOT_SECRET_KEY" -er http://127.0.0.1:7070'
    for command in (
        f"create-user -a {team} -s {secret_key} -r user",
        f"create-bucket --owner {team} --bucket results-{team}",
    ):
        cluster.kubectl("exec", "s3", "--", "sh", "-c", f"{admin} {command}")


def push(cluster: Cluster, team: str, folder: Path, *, more: str = "") -> None:
    """Commit the team's repository, in a folder that may have it already, and push it."""
    if not (folder / ".git").exists():
        folder.mkdir()
        git("init", "--quiet", "--initial-branch=main", str(folder))
    files = {
        "flow.py": FLOW,
        "totals.py": TOTALS,
        "prefect.yaml": PREFECT_YAML + more,
    }
    for name, text in files.items():
        (folder / name).write_text(text.lstrip().replace("TEAM", team))
    git("add", ".", cwd=folder)
    git("commit", "--quiet", "--allow-empty", "-m", "Flows", cwd=folder)
    kubeconfig = cluster.environment["KUBECONFIG"]
    remote = (
        f"ext::kubectl --kubeconfig {kubeconfig} --namespace {NAMESPACE} exec -i git "
        f"-- git %s /tmp/git/{team}.git"
    )
    git("-c", "protocol.ext.allow=always", "push", "--quiet", remote, "main", cwd=folder)


def values() -> dict[str, Any]:
    def pods(namespace: str, app: str, port: int) -> dict[str, Any]:
        place = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
        peer = {"namespaceSelector": place, "podSelector": {"matchLabels": {"app": app}}}
        return {"to": [peer], "ports": [{"port": port, "protocol": "TCP"}]}

    pools = {
        team: {
            "hamiltonUi": {"project": team},
            "networkPolicy": {
                "flowsEgress": [
                    pods(NAMESPACE, "git", 9418),
                    pods(NAMESPACE, "s3", 7070),
                    pods(team, "warehouse", 5432),
                ]
            },
            "flows": {
                "namespace": team,
                "env": {"WAREHOUSE_URL": {"secretKeyRef": {"name": "warehouse", "key": "url"}}},
                "results": {"bucket": f"s3://results-{team}", "existingSecret": "bucket"},
            },
        }
        for team in TEAMS
    }
    repositories = {
        team: {"url": f"git://git.{NAMESPACE}/{team}.git", "pools": [team]} for team in TEAMS
    }
    image = {"repository": "prefect-hamilton/example-flows"}
    return {
        "workers": pools,
        "flows": {"image": image, "repositories": repositories},
        "hamiltonUi": {"allowedHosts": ["127.0.0.1"]},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teams")


@pytest.fixture(scope="module")
def teams(cluster: Cluster, folder: Path) -> Iterator[Cluster]:
    """The release of both teams."""
    two = replace(
        cluster,
        port=free_port(),
        hamilton_port=free_port(),
        namespace=NAMESPACE,
        release=RELEASE,
    )
    s3.program()  # Or the tests are skipped.
    keys = {team: secrets.token_hex(12) for team in TEAMS}
    namespaces = (NAMESPACE, *TEAMS)
    with ExitStack() as stack:
        stack.callback(cluster.run, "kubectl", "delete", "namespace", *namespaces, check=False)
        for namespace in namespaces:
            cluster.run("kubectl", "create", "namespace", namespace)
        restricted = "pod-security.kubernetes.io/enforce=restricted"
        cluster.run("kubectl", "label", "namespace", *namespaces, restricted)
        apply(two, NAMESPACE, folder, *git_server(), *s3_server(secrets.token_hex(12)))
        for team in TEAMS:
            apply(two, team, folder, *warehouse(team), bucket(team, keys[team]))
        s3.send(two, "s3")
        for team in TEAMS:
            give_bucket(two, team, keys[team])
        two.kubectl("wait", "pod/git", "--for=condition=Ready", "--timeout=120s")
        for team in TEAMS:
            push(two, team, folder / team)
        file = folder / "values.json"
        file.write_text(json.dumps(values()))
        ready = ("--wait", "--wait-for-jobs", "--timeout=480s")
        two.helm("install", RELEASE, CHART, "--values", str(file), *ready)
        for team in TEAMS:
            ready = ("--for=condition=Ready", "--timeout=120s")
            kubectl(two, team, "wait", "pod/warehouse", *ready)
        forward_uis(two, stack)
        yield two


@pytest.fixture(scope="module")
def runs(teams: Cluster) -> dict[str, str]:
    """A run of each team, both at the same time, that tries to reach everything."""
    targets = [
        *(f"warehouse.{team}:5432" for team in TEAMS),
        f"{RELEASE}-postgres.{NAMESPACE}:5432",
        f"{RELEASE}-server.{NAMESPACE}:4200",
    ]
    return {team: teams.start(f"load-{team}/load-k8s", targets=targets) for team in TEAMS}


@each_team
def test_a_run_completes_in_the_namespace_of_its_team(
    teams: Cluster, runs: dict[str, str], team: str
) -> None:
    log = teams.wait_for_log(runs[team], "Looked everywhere")
    assert f"Warehouse {team}" in log
    run = teams.wait_for_state(runs[team], "Completed", "Failed", "Crashed")
    assert run["state_name"] == "Completed", run["state"]["message"]
    assert run["infrastructure_pid"].startswith(f"{team}:")


@each_team
def test_flow_pods_reach_their_own_warehouse_alone(
    teams: Cluster, runs: dict[str, str], team: str
) -> None:
    log = teams.wait_for_log(runs[team], "Looked everywhere")
    reached = set(re.findall(r"Reached (\S+)", log))
    assert reached == {f"warehouse.{team}:5432", f"{RELEASE}-server.{NAMESPACE}:4200"}, log


@each_team
def test_results_are_in_the_bucket_of_the_team_alone(
    teams: Cluster, runs: dict[str, str], team: str
) -> None:
    """The key of the cache is the same in both teams: each computes the task once."""
    first = teams.wait_for_log(runs[team], "Looked everywhere")
    teams.wait_for_state(runs[team], "Completed")
    again = teams.wait_for_log(teams.start(f"load-{team}/load-k8s"), "Looked everywhere")
    assert "Computed the square" in first
    assert "Computed the square" not in again
    assert "The square is 49" in again
    assert f"Listed results-{team}: ['results-{team}/" in again
    assert f"Forbidden results-{OTHER[team]}" in again


@each_team
def test_a_run_is_in_the_project_of_its_team(
    teams: Cluster, runs: dict[str, str], team: str
) -> None:
    teams.wait_for_state(runs[team], "Completed")
    headers = {"x-api-user": "prefect", "x-api-key": teams.secret("hamilton-ui", "api-key")}
    answer = httpx.get(f"{teams.hamilton_url}/api/v1/projects", headers=headers)
    projects = {each["name"]: str(each["id"]) for each in answer.raise_for_status().json()}
    artifacts = teams.post("/artifacts/filter", flow_runs={"id": {"any_": [runs[team]]}})
    links = [each["data"] for each in artifacts if (each["key"] or "").startswith("hamilton-run")]
    assert links
    assert re.findall(r"/project/(\d+)/runs/", "".join(links)) == [projects[team]] * len(links)


def may(cluster: Cluster, account: str, verb: str, what: str, namespace: str) -> bool:
    command = ["auth", "can-i", verb, what, "--as", f"system:serviceaccount:{account}"]
    answer = kubectl(cluster, namespace, *command, check=False)
    return answer.strip().splitlines()[-1] == "yes"


@each_team
def test_no_account_of_a_team_has_rights_beyond_its_namespace(teams: Cluster, team: str) -> None:
    flows, worker = f"{team}:{RELEASE}-flows", f"{NAMESPACE}:{RELEASE}-worker-{team}"
    for namespace in (NAMESPACE, *TEAMS):
        for account in (flows, worker):
            for verb in ("get", "list", "create"):
                assert not may(teams, account, verb, "secrets", namespace), (account, namespace)
        assert not may(teams, flows, "create", "jobs.batch", namespace)
        has = namespace == team
        assert may(teams, worker, "create", "jobs.batch", namespace) == has
        assert may(teams, worker, "list", "pods", namespace) == has
    label = f"app.kubernetes.io/instance={RELEASE}"
    kinds = "clusterroles,clusterrolebindings"
    assert "No resources found" in teams.kubectl("get", kinds, "-l", label)


@each_team
def test_a_pod_with_the_account_of_flow_pods_cannot_read_secrets(
    teams: Cluster, folder: Path, team: str
) -> None:
    reader = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "reader"},
        "spec": {
            "serviceAccountName": f"{RELEASE}-flows",
            "automountServiceAccountToken": True,
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "reader",
                    "image": SERVER_IMAGE,
                    "args": ["python", "-c", READ_SECRETS, *TEAMS],
                    "securityContext": CONFINED,
                }
            ],
        },
    }
    apply(teams, team, folder, reader)
    phase = "--for=jsonpath={.status.phase}=Succeeded"
    kubectl(teams, team, "wait", "pod/reader", phase, "--timeout=120s")
    assert kubectl(teams, team, "logs", "reader").splitlines() == [f"{each} 403" for each in TEAMS]


@each_team
def test_a_deployment_cannot_name_a_secret_of_the_other_team(teams: Cluster, team: str) -> None:
    stolen = {"secret_env": {"STOLEN": f"private-{OTHER[team]}/word"}}
    run = teams.start(f"load-{team}/load-k8s", job_variables=stolen)
    where = ("get", "pods", "-l", f"prefect.io/flow-run-id={run}", "-o", "json")

    @eventually
    def refused() -> None:
        (found,) = json.loads(kubectl(teams, team, *where))["items"]
        waiting = found["status"]["containerStatuses"][0]["state"]["waiting"]
        assert waiting["reason"] == "CreateContainerConfigError"
        assert f'secret "private-{OTHER[team]}" not found' in waiting["message"]

    refused()
    teams.cancel(run)
    teams.wait_for_state(run, "Cancelled")


def test_secrets_of_the_release_are_copied_as_far_as_flow_pods_use_them(teams: Cluster) -> None:
    for team in TEAMS:
        found = {
            each["metadata"]["name"]: set(each["data"])
            for each in json.loads(kubectl(teams, team, "get", "secrets", "-o", "json"))["items"]
        }
        assert found == {
            "warehouse": {"url"},
            "bucket": {
                "AWS_ACCESS_KEY_ID",
                "AWS_SECRET_ACCESS_KEY",
                "AWS_ENDPOINT_URL",
                "AWS_REGION",
            },
            f"private-{team}": {"word"},
            f"{RELEASE}-auth": {"auth-string"},
            f"{RELEASE}-hamilton-ui": {"api-key"},
        }


def test_a_repository_cannot_register_into_the_pool_of_the_other_team(
    teams: Cluster, folder: Path
) -> None:
    push(teams, "team-b", folder / "team-b", more=INTO_THE_OTHER_POOL.replace("POOL", "team-a"))
    (job,) = teams.get("jobs", "-l", "app.kubernetes.io/component=bootstrap")["items"]
    template = job["spec"]["template"]
    labels = {
        key: value
        for key, value in template["metadata"]["labels"].items()
        if key.startswith("app.kubernetes.io/")
    }
    again = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "bootstrap-again"},
        "spec": {
            "backoffLimit": 0,
            "template": {
                "metadata": {"labels": labels},
                "spec": template["spec"] | {"restartPolicy": "Never"},
            },
        },
    }
    apply(teams, NAMESPACE, folder, again)
    teams.kubectl("wait", "job/bootstrap-again", "--for=condition=Failed", "--timeout=300s")
    log = teams.kubectl("logs", "job/bootstrap-again")
    assert (
        "bootstrap: repository team-b: prefect.yaml: deployment intruder-k8s has the work pool "
        "team-a, but this repository may only use team-b" in log
    )
    pools = {each["name"]: each["work_pool_name"] for each in teams.post("/deployments/filter")}
    assert "intruder-k8s" not in pools
    for team in TEAMS:
        assert teams.deployment(f"load-{team}/load-k8s")["work_pool_name"] == team
