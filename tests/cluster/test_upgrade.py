"""The release over time: upgrades, growth, removal. The last test removes it all."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts import kind
from tests.cluster.conftest import CHART, KUBECONFIG, NAME, needs_kind
from tests.clusters import LONG_LIVED, RELEASE, WALKTHROUGH, Cluster, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

BOOTSTRAP = "app.kubernetes.io/component=bootstrap"
SERVER = "app.kubernetes.io/component=server"
WORKER = "app.kubernetes.io/component=worker"
# What `prefect worker start` prints.
WORKER_STARTS = r"^(Worker '.+' started!|Discovered type .+ for work pool .+\.)$"


def upgrade(cluster: Cluster, *options: str) -> None:
    cluster.helm("upgrade", RELEASE, CHART, "--reset-then-reuse-values", *options)


def wait_for_rollout(cluster: Cluster) -> None:
    """Wait until the new pods are ready and the old ones gone.

    An old server that is still terminating does not use Valkey: events that it receives are missing
    there, and the events that follow wait for them.
    """
    for workload in cluster.kubectl("get", "deployment,statefulset", "-o", "name").split():
        cluster.kubectl("rollout", "status", workload, "--timeout=300s")

    @eventually
    def ended() -> None:
        pods = cluster.get("pods", "-l", LONG_LIVED)["items"]
        assert not [p["metadata"]["name"] for p in pods if "deletionTimestamp" in p["metadata"]]

    ended()


def wait_for_bootstrap(cluster: Cluster) -> str:
    """Wait for the bootstrap of the last upgrade; returns its log."""
    cluster.kubectl("wait", "job", "-l", BOOTSTRAP, "--for=condition=complete", "--timeout=300s")
    return cluster.kubectl("logs", "-l", BOOTSTRAP, "--tail=-1")


@contextmanager
def asking(url: str) -> Iterator[list[str]]:
    """Send requests continuously, each on a new connection; yields the responses so far."""
    answers: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.05):
            try:
                answers.append(str(httpx.get(url, timeout=30).status_code))
            except httpx.HTTPError as error:
                answers.append(repr(error))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()


def test_a_second_bootstrap_changes_nothing(cluster: Cluster) -> None:
    upgrade(cluster, "--set-string", "bootstrap.podAnnotations.flows=second")
    log = wait_for_bootstrap(cluster)
    outcomes = [line.split()[0] for line in log.splitlines() if line.startswith("  ")]
    assert "unchanged" in outcomes
    assert not {"created", "updated", "waiting"} & set(outcomes), log


def test_an_upgrade_that_changes_nothing_rolls_nothing(cluster: Cluster) -> None:
    wait_for_rollout(cluster)
    before = cluster.uids()
    jobs = {job["metadata"]["uid"] for job in cluster.get("jobs", "-l", BOOTSTRAP)["items"]}
    upgrade(cluster)
    wait_for_rollout(cluster)
    assert cluster.uids() == before
    assert {job["metadata"]["uid"] for job in cluster.get("jobs", "-l", BOOTSTRAP)["items"]} == jobs


def test_an_upgrade_rolls_changed_pods_and_keeps_a_run_alive(cluster: Cluster) -> None:
    before = cluster.uids()
    run_id = cluster.start(cluster.probe("waits"))
    cluster.wait_for_state(run_id, "Running")
    changed = ["worker.logLevel=DEBUG", "server.retention.eventsDays=6", "logs.format=json"]
    upgrade(cluster, *(word for each in changed for word in ("--set", each)))
    wait_for_rollout(cluster)
    after = cluster.uids()
    rolled = {name for name in before if after.get(name) != before[name]}
    assert rolled == {"server", "worker", "git-server"}  # the format is that of all of them
    cluster.let_go(run_id)
    assert cluster.wait_for_state(run_id, "Completed")["run_count"] == 1


def test_lines_of_server_worker_and_flow_pods_are_json(cluster: Cluster) -> None:
    """The upgrade of the test before has changed the format."""
    wait_for_bootstrap(cluster)
    run_id = cluster.start(cluster.probe("waits"))
    cluster.wait_for_state(run_id, "Running")
    of_run = f"prefect.io/flow-run-id={run_id}"
    for selector, container in ((SERVER, "server"), (WORKER, "worker"), (of_run, "prefect-job")):
        options = ("-l", selector, "-c", container, "--tail=-1")
        lines = cluster.kubectl("logs", *options).splitlines()
        text = [line for line in lines if not line.startswith("{")]
        # The server logs warnings only.
        assert len(lines) > len(text) or selector == SERVER
        assert not [line for line in text if not re.search(WORKER_STARTS, line)], text
        messages = [json.loads(line) for line in lines if line not in text]
        assert not [each for each in messages if not {"message", "logger"} <= each.keys()]
        if selector == of_run:
            assert {each["flow_run_id"] for each in messages} == {run_id}
    cluster.let_go(run_id)
    cluster.wait_for_state(run_id, "Completed")


@needs_kind
def test_a_rollout_of_the_server_loses_no_request(cluster: Cluster) -> None:
    """A forwarded port would follow one pod; the node's port follows the Service."""
    before = cluster.uids()["server"]
    with asking(f"{cluster.api_url}/health") as answers:
        cluster.kubectl("rollout", "restart", f"deployment/{RELEASE}-server")
        wait_for_rollout(cluster)
    assert cluster.uids()["server"] != before
    assert len(answers) > 20
    assert set(answers) == {"200"}


def test_the_base_job_template_is_kept_in_sync(cluster: Cluster) -> None:
    def request() -> Any:
        template = cluster.api.get("/work_pools/kubernetes").json()["base_job_template"]
        return template["variables"]["properties"]["cpu_request"]["default"]

    assert request() != "30m"
    upgrade(cluster, "--set", "flows.resources.requests.cpu=30m")
    wait_for_bootstrap(cluster)
    assert request() == "30m"


def test_a_release_scales_to_several_servers(cluster: Cluster) -> None:
    if not KUBECONFIG:
        kind.load_images(NAME, ["valkey/valkey:8"])
    upgrade(cluster, "--set", "server.replicas=2,valkey.enabled=true")
    wait_for_rollout(cluster)
    for workload, pods in {
        f"deployment/{RELEASE}-server": 2,
        f"deployment/{RELEASE}-background-services": 1,
        f"statefulset/{RELEASE}-valkey": 1,
    }.items():
        assert cluster.get(workload)["status"]["readyReplicas"] == pods
    # Each run's report is started by the background services: events pass through Valkey.
    run_id = cluster.start(WALKTHROUGH, should_fail=True)
    cluster.wait_for_state(run_id, "Failed")
    reports = {"deployments": {"name": {"any_": ["on-failure-k8s"]}}}

    @eventually
    def reported() -> None:
        runs = cluster.post("/flow_runs/filter", **reports, sort="START_TIME_DESC")
        (report,) = [run for run in runs if run["parameters"].get("flow_run_id") == run_id]
        assert report["state_name"] == "Completed"

    reported()
    server = f"{RELEASE}-server:4200"
    assert cluster.reachable(server, f"{RELEASE}-valkey:6379") == {server}
    upgrade(cluster, "--set", "server.replicas=1,valkey.enabled=false")
    wait_for_rollout(cluster)
    assert cluster.flow_run(run_id)["state_name"] == "Failed"


def test_a_restored_backup_brings_back_lost_data(cluster: Cluster, tmp_path: Path) -> None:
    """With the commands of docs/operate.md."""
    database = f"statefulset/{RELEASE}-postgres"
    runs = {run["id"] for run in cluster.post("/flow_runs/filter", limit=200)}
    dump = tmp_path / "prefect.dump"
    command = ["exec", database, "--", "pg_dump", "--username=postgres", "--format=custom"]
    with dump.open("wb") as file:
        cluster.pipe(*command, "prefect", stdout=file)
    cluster.api.delete(f"/flow_runs/{min(runs)}").raise_for_status()
    server = f"deployment/{RELEASE}-server"
    cluster.kubectl("scale", server, "--replicas=0")
    cluster.kubectl("wait", "pod", "-l", SERVER, "--for=delete", "--timeout=120s")
    command = ["exec", "-i", database, "--", "pg_restore", "--username=postgres"]
    with dump.open("rb") as file:
        cluster.pipe(*command, "--clean", "--if-exists", "--dbname=prefect", stdin=file)
    cluster.kubectl("scale", server, "--replicas=1")
    cluster.kubectl("rollout", "status", server, "--timeout=180s")
    assert runs <= {run["id"] for run in cluster.post("/flow_runs/filter", limit=200)}


def test_data_and_passwords_survive_helm_uninstall(cluster: Cluster, tmp_path: Path) -> None:
    password = cluster.secret("auth", "auth-string")
    runs = {run["id"] for run in cluster.post("/flow_runs/filter", limit=200)}
    values = tmp_path / "values.json"
    values.write_text(cluster.helm("get", "values", RELEASE, "-o", "json"))
    cluster.helm("uninstall", RELEASE, "--wait")
    claims = {claim["metadata"]["name"] for claim in cluster.get("pvc")["items"]}
    assert {f"data-{RELEASE}-postgres-0", f"{RELEASE}-hamilton-ui"} <= claims
    assert cluster.secret("auth", "auth-string") == password
    cluster.helm("install", RELEASE, CHART, "--values", str(values))
    wait_for_rollout(cluster)
    assert runs <= {run["id"] for run in cluster.post("/flow_runs/filter", limit=200)}
