"""The worker's Role is minimal: without any of its rules, a request is denied."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.chart.test_worker_role import NEEDED
from tests.clusters import RELEASE, Cluster, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ROLE = f"{RELEASE}-worker"
WORKER = f"deploy/{RELEASE}-worker-kubernetes"
LAST_WORDS = {"command": "sh -c 'echo last words; exit 1'"}

# Rules that can be removed together, because the worker needs them at different times.
WATCHED = [
    [("jobs", "list"), ("pods", "list")],
    [("jobs", "watch"), ("pods", "watch")],
]
CREATED = ("jobs", "create")
ENDED = [("jobs", "delete"), ("jobs", "get"), ("pods/log", "get")]


@pytest.fixture(scope="module")
def role(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """The worker's Role, whole again afterwards."""
    role = cluster.get("role", ROLE)
    metadata = {key: role["metadata"][key] for key in ("name", "labels", "annotations")}
    yield {key: role[key] for key in ("apiVersion", "kind", "rules")} | {"metadata": metadata}
    restart(cluster)


@contextmanager
def without(
    cluster: Cluster, role: dict[str, Any], rules: list[tuple[str, str]], folder: Path
) -> Iterator[None]:
    """Take these resources' verbs from the Role while the block runs."""
    left = []
    for rule in role["rules"]:
        (resource,) = rule["resources"]
        if verbs := [verb for verb in rule["verbs"] if (resource, verb) not in rules]:
            left.append(rule | {"verbs": verbs})
    file = folder / "role.json"
    file.write_text(json.dumps(role | {"rules": left}))
    # As Helm does, so that the next upgrade finds nobody else's fields.
    apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=helm", "-f", str(file)]
    cluster.kubectl(*apply)
    try:
        yield
    finally:
        file.write_text(json.dumps(role))
        cluster.kubectl(*apply)


def restart(cluster: Cluster) -> None:
    selector = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=worker"
    cluster.kubectl("delete", "pod", "-l", selector, "--grace-period=0", "--force")
    cluster.kubectl("rollout", "status", WORKER, "--timeout=180s")


@eventually
def wait_until_refused(cluster: Cluster, resource: str, verb: str) -> None:
    log = cluster.kubectl("logs", WORKER, "--tail=-1")
    # Some messages quote the server's answer.
    assert f'cannot {verb} resource "{resource}"' in log.replace("\\", "")


def test_each_rule_is_in_one_of_these_tests() -> None:
    tried = [*(rule for rules in WATCHED for rule in rules), CREATED, *ENDED]
    assert sorted(tried) == sorted((resource, verb) for _, resource, verb in NEEDED)


@pytest.mark.parametrize("rules", WATCHED, ids=["list", "watch"])
def test_without_the_right_the_worker_cannot_watch(
    rules: list[tuple[str, str]], role: dict[str, Any], cluster: Cluster, tmp_path: Path
) -> None:
    with without(cluster, role, rules, tmp_path):
        restart(cluster)
        for resource, verb in rules:
            wait_until_refused(cluster, resource, verb)


def test_without_the_right_a_run_does_not_start(
    role: dict[str, Any], cluster: Cluster, tmp_path: Path
) -> None:
    restart(cluster)
    with without(cluster, role, [CREATED], tmp_path):
        run = cluster.wait_for_state(cluster.start(cluster.probe("waits")), "Crashed")
    assert 'cannot create resource "jobs"' in run["state"]["message"]


def test_without_the_permission_the_end_of_a_pod_is_not_noticed(
    role: dict[str, Any], cluster: Cluster, tmp_path: Path
) -> None:
    reported = cluster.start(cluster.probe("waits"), job_variables=LAST_WORDS)
    deleted = cluster.start(cluster.probe("waits"))
    cluster.wait_for_state(deleted, "Running")
    cluster.wait_for_log(reported, "last words")
    with without(cluster, role, ENDED, tmp_path):
        unreported = cluster.start(cluster.probe("waits"), job_variables=LAST_WORDS)
        pending = cluster.start(cluster.probe("waits"), job_variables={"cpu_request": "64"})
        cluster.wait_for_log(pending, "Insufficient cpu")
        cluster.cancel(pending)
        # The pod stays, so that nothing but the Job is gone.
        selector = f"prefect.io/flow-run-id={deleted}"
        cluster.kubectl("delete", "job", "-l", selector, "--cascade=orphan")
        wait_until_refused(cluster, "jobs", "get")
        cluster.wait_for_state(unreported, "Crashed")
        # A minute later, when all that was logged has arrived.
        wait_until_refused(cluster, "jobs", "delete")
        assert "last words" not in cluster.log(unreported)
    cluster.wait_for_state(pending, "Cancelled")
    cluster.let_go(deleted)
    cluster.wait_for_state(deleted, "Completed")
    cluster.kubectl("delete", "pod", "-l", selector)
