"""Failures during a flow run, and the final state of the run."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from prefect_hamilton.worker import kubernetes, sweep
from prefect_hamilton.worker.takers import Taker
from prefect_hamilton.worker.worker import OUT_OF_TIME
from tests.clusters import NAMESPACE, RELEASE, Cluster, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ETL = "Enterprise Data Pipeline/production-etl-k8s"
POSTGRES = f"statefulset/{RELEASE}-postgres"


@pytest.fixture(scope="module")
def waiting(cluster: Cluster) -> Iterator[list[str]]:
    """Runs of `waits`, one for each test that takes one; their pods start at the same time.

    All run before the first test breaks something: a run whose pod is not there yet would miss it.
    """
    deployment = cluster.probe("waits")
    runs = [cluster.start(deployment) for _ in range(5)]
    for run_id in runs:
        cluster.wait_for_state(run_id, "Running")
    yield runs
    for run_id in runs:
        cluster.cancel(run_id)


@pytest.fixture
def running(waiting: list[str]) -> str:
    """A run that waits; it has outlived what the tests before have broken."""
    return waiting.pop()


def kill(cluster: Cluster, component: str) -> None:
    """Kill a component's pod at once."""
    selector = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component={component}"
    cluster.kubectl("delete", "pod", "-l", selector, "--grace-period=0", "--force")


def wait_for_rollout(cluster: Cluster, workload: str) -> None:
    cluster.kubectl("rollout", "status", workload, "--timeout=180s")


def test_a_run_outlives_the_worker(cluster: Cluster, running: str) -> None:
    kill(cluster, "worker")
    cluster.let_go(running)
    assert cluster.wait_for_state(running, "Completed")["run_count"] == 1
    wait_for_rollout(cluster, f"deploy/{RELEASE}-worker-kubernetes")


def test_a_run_that_a_killed_worker_had_taken_up_waits_again_at_once(cluster: Cluster) -> None:
    """As if its pod had been killed before it created the Job."""
    authority = cluster.get("configmap", "kube-root-ca.crt")["data"]["ca.crt"].encode()
    killed = Taker(NAMESPACE, "killed", kubernetes.cluster_with(authority), "of-before")
    path = f"/deployments/{cluster.deployment(cluster.probe('tells'))['id']}/create_flow_run"
    state = {"type": "PENDING", "message": killed.pending().message}
    run_id = cluster.post(path, parameters={"variable": "HOME"}, state=state)["id"]
    kill(cluster, "worker")
    cluster.wait_for_state(run_id, "Completed")
    states = cluster.api.get("/flow_run_states/", params={"flow_run_id": run_id}).json()
    assert sweep.ABANDONED in [each["message"] for each in states]
    wait_for_rollout(cluster, f"deploy/{RELEASE}-worker-kubernetes")


def test_a_run_outlives_the_server(cluster: Cluster, running: str) -> None:
    limited = cluster.probe("waits", name="limited", concurrency_limit=1)
    holder = cluster.start(limited)
    cluster.wait_for_state(holder, "Running")
    cluster.kubectl("scale", f"deploy/{RELEASE}-server", "--replicas=0")
    cluster.let_go(running)
    cluster.kubectl("scale", f"deploy/{RELEASE}-server", "--replicas=1")
    wait_for_rollout(cluster, f"deploy/{RELEASE}-server")
    assert cluster.wait_for_state(running, "Completed")["run_count"] == 1
    # The server knows the lease of the slot that the other one holds.
    details = cluster.flow_run(holder)["state"]["state_details"]
    lease = details["deployment_concurrency_lease_id"]
    renewal = f"/v2/concurrency_limits/leases/{lease}/renew"
    assert cluster.api.post(renewal, json={"lease_duration": 300}).status_code == 204
    cluster.let_go(holder)
    cluster.wait_for_state(holder, "Completed")
    assert cluster.deployment(limited)["global_concurrency_limit"]["active_slots"] == 0


def test_a_run_outlives_a_restart_of_postgresql(cluster: Cluster, running: str) -> None:
    kill(cluster, "postgres")
    wait_for_rollout(cluster, f"statefulset/{RELEASE}-postgres")
    cluster.let_go(running)
    assert cluster.wait_for_state(running, "Completed")["run_count"] == 1


def test_a_killed_flow_pod_is_rescheduled(cluster: Cluster, running: str) -> None:
    (pod,) = cluster.pods(running)
    cluster.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")

    @eventually
    def runs_again() -> None:
        assert cluster.flow_run(running)["run_count"] == 2

    runs_again()
    cluster.let_go(running)
    assert cluster.wait_for_state(running, "Completed")["run_count"] == 2


def test_a_run_whose_pod_reaches_its_deadline_is_not_executed_again(cluster: Cluster) -> None:
    variables = {"active_deadline_seconds": 15}
    run = cluster.start(cluster.probe("waits"), job_variables=variables)
    run = cluster.wait_for_state(run, "Crashed")
    assert run["state"]["message"] == OUT_OF_TIME.format(15)
    assert run["run_count"] == 1


def test_a_run_whose_pod_vanishes_does_not_stay_running(cluster: Cluster, running: str) -> None:
    (pod,) = cluster.pods(running)
    cluster.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")

    @eventually
    def crashes_or_runs_again() -> bool:
        run = cluster.flow_run(running)
        assert run["state_name"] == "Crashed" or run["run_count"] == 2, run["state_name"]
        return bool(run["run_count"] == 2)

    if crashes_or_runs_again():
        cluster.let_go(running)
        cluster.wait_for_state(running, "Completed")


def test_the_pipeline_killed_in_the_middle_loads_every_row_once(cluster: Cluster) -> None:
    table = {"target_table": "warehouse.killed.metrics"}
    cluster.wait_for_state(cluster.start(ETL, **table), "Completed")
    everything = rows(cluster, "killed")
    assert everything > 0
    last = psql(cluster, "SELECT metric, time FROM killed.metrics ORDER BY 2 DESC, 1 DESC LIMIT 1")
    metric, time = last.split("|")
    psql(cluster, "TRUNCATE killed.metrics, killed.metrics_monthly")

    # The load waits for this session before its last row, so it stops before its end.
    statement = f"INSERT INTO killed.metrics (metric, time) VALUES ('{metric}', '{time}')"  # noqa: S608
    with uncommitted(cluster, statement):
        run_id = cluster.start(ETL, batch_size=100, **table)

        @eventually
        def waits_in_the_middle() -> None:
            log = "SELECT status, rows_written FROM killed.metrics_loads WHERE flow_run_id = "
            status, _, written = psql(cluster, f"{log}'{run_id}'").partition("|")
            assert status == "loading"
            assert 0 < int(written) < everything
            assert psql(cluster, WAITS_FOR_HOLDER) == "1"

        waits_in_the_middle()
        (pod,) = cluster.pods(run_id)
        cluster.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
        # Its rows so far, and none of those that it was about to write.
        assert 0 < rows(cluster, "killed") < everything

    @eventually
    def ends() -> str:
        run = cluster.flow_run(run_id)
        # Prefect starts it again, or, where its pod was gone too fast, says that it crashed.
        assert run["state_name"] in ("Completed", "Crashed"), run["state_name"]
        return str(run["state_name"])

    if ends() == "Crashed":
        cluster.wait_for_state(cluster.start(ETL, **table), "Completed")
    else:
        assert cluster.flow_run(run_id)["run_count"] == 2
    assert rows(cluster, "killed") == everything


HOLDER = "holder"
WAITS_FOR_HOLDER = f"""
SELECT count(*) FROM pg_stat_activity AS waiting, pg_stat_activity AS holder
WHERE holder.application_name = '{HOLDER}'
  AND holder.pid = ANY(pg_blocking_pids(waiting.pid))
"""  # noqa: S608


def psql(cluster: Cluster, query: str) -> str:
    """What a query of the warehouse gives: columns separated by `|`."""
    return cluster.kubectl("exec", POSTGRES, "--", *psql_command("test"), "-c", query).strip()


def psql_command(application: str) -> list[str]:
    where = f"dbname=warehouse user=postgres application_name={application}"
    return ["psql", "--no-psqlrc", "--quiet", "-At", "--dbname", where]


@contextmanager
def uncommitted(cluster: Cluster, statement: str) -> Iterator[None]:
    """A session that has executed a statement, and takes it back when the block ends."""
    command = ["kubectl", "--namespace", NAMESPACE, "exec", "-i", POSTGRES, "--"]
    session = subprocess.Popen(
        [*command, *psql_command(HOLDER)],
        env=cluster.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert session.stdin
    try:
        session.stdin.write(f"BEGIN;\n{statement};\n")
        session.stdin.flush()

        @eventually
        def has_executed_it() -> None:
            found = psql(
                cluster,
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' "  # noqa: S608
                f"AND application_name = '{HOLDER}' AND query LIKE 'INSERT%'",
            )
            assert found == "1"

        has_executed_it()
        yield
    finally:
        session.stdin.close()  # psql ends, and its transaction with it
        session.wait(timeout=60)


def rows(cluster: Cluster, schema: str) -> int:
    """Rows of a schema's table `metrics`, each counted once for its key."""
    query = f"SELECT count(*), count(DISTINCT (metric, time)) FROM {schema}.metrics"  # noqa: S608
    every, once = psql(cluster, query).split("|")
    assert every == once
    return int(every)


def test_a_run_waits_for_a_git_server_that_is_down(cluster: Cluster) -> None:
    server = f"deploy/{RELEASE}-git-server"
    deployment = cluster.probe("tells")
    cluster.kubectl("scale", server, "--replicas=0")
    run_id = cluster.start(deployment, variable="HOME")
    cluster.wait_for_log(run_id, "clone")
    cluster.kubectl("scale", server, "--replicas=1")
    cluster.wait_for_state(run_id, "Completed")
