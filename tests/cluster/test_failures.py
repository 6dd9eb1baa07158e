"""What breaks in the middle of a run, and the state that the run ends in."""

import pytest

from tests.cluster.conftest import RELEASE, Cluster, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ETL = "Enterprise Data Pipeline/production-etl-k8s"


def running(cluster: Cluster) -> str:
    """Start a run of `waits`; returns its id when it runs."""
    run_id = cluster.start(cluster.probe("waits"))
    cluster.wait_for_state(run_id, "Running")
    return run_id


def kill(cluster: Cluster, component: str) -> None:
    """Kill a component's pod at once."""
    selector = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component={component}"
    cluster.kubectl("delete", "pod", "-l", selector, "--grace-period=0", "--force")


def wait_for_rollout(cluster: Cluster, workload: str) -> None:
    cluster.kubectl("rollout", "status", workload, "--timeout=180s")


def test_a_run_outlives_the_worker(cluster: Cluster) -> None:
    run_id = running(cluster)
    kill(cluster, "worker")
    cluster.let_go(run_id)
    assert cluster.wait_for_state(run_id, "Completed")["run_count"] == 1
    wait_for_rollout(cluster, f"deploy/{RELEASE}-worker-kubernetes")


def test_a_run_outlives_the_server(cluster: Cluster) -> None:
    run_id = running(cluster)
    cluster.kubectl("scale", f"deploy/{RELEASE}-server", "--replicas=0")
    cluster.let_go(run_id)
    cluster.kubectl("scale", f"deploy/{RELEASE}-server", "--replicas=1")
    wait_for_rollout(cluster, f"deploy/{RELEASE}-server")
    assert cluster.wait_for_state(run_id, "Completed")["run_count"] == 1


def test_a_run_outlives_a_restart_of_postgresql(cluster: Cluster) -> None:
    run_id = running(cluster)
    kill(cluster, "postgres")
    wait_for_rollout(cluster, f"statefulset/{RELEASE}-postgres")
    cluster.let_go(run_id)
    assert cluster.wait_for_state(run_id, "Completed")["run_count"] == 1


def test_a_killed_flow_pod_is_rescheduled(cluster: Cluster) -> None:
    run_id = running(cluster)
    (pod,) = cluster.pods(run_id)
    cluster.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")

    @eventually
    def runs_again() -> None:
        assert cluster.flow_run(run_id)["run_count"] == 2

    runs_again()
    cluster.let_go(run_id)
    assert cluster.wait_for_state(run_id, "Completed")["run_count"] == 2


def test_a_flow_pod_that_is_gone_at_once_does_not_stay_running(cluster: Cluster) -> None:
    run_id = running(cluster)
    (pod,) = cluster.pods(run_id)
    cluster.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")

    @eventually
    def crashes_or_runs_again() -> bool:
        run = cluster.flow_run(run_id)
        assert run["state_name"] == "Crashed" or run["run_count"] == 2, run["state_name"]
        return bool(run["run_count"] == 2)

    if crashes_or_runs_again():
        cluster.let_go(run_id)
        cluster.wait_for_state(run_id, "Completed")


def test_the_pipeline_killed_in_the_middle_loads_every_row_once(cluster: Cluster) -> None:
    table = {"target_table": "warehouse.killed.metrics"}
    run_id = cluster.start(ETL, batch_size=100, **table)
    cluster.wait_for_log(run_id, "batch")
    (pod,) = cluster.pods(run_id)
    cluster.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
    cluster.wait_for_state(run_id, "Completed")
    whole = cluster.start(ETL, target_table="warehouse.whole.metrics")
    cluster.wait_for_state(whole, "Completed")
    assert rows(cluster, "killed") == rows(cluster, "whole") > 0


def rows(cluster: Cluster, schema: str) -> int:
    """Rows of a schema's table `metrics`, each counted once for its key."""
    query = f"SELECT count(*) || ' ' || count(DISTINCT (metric, time)) FROM {schema}.metrics"  # noqa: S608
    psql = ["psql", "--username=postgres", "--dbname=warehouse", "-At", "-c", query]
    found = cluster.kubectl("exec", f"statefulset/{RELEASE}-postgres", "--", *psql).split()
    assert found[0] == found[1]
    return int(found[0])


def test_a_run_waits_for_a_git_server_that_is_down(cluster: Cluster) -> None:
    server = f"deploy/{RELEASE}-git-server"
    deployment = cluster.probe("tells")
    cluster.kubectl("scale", server, "--replicas=0")
    run_id = cluster.start(deployment, variable="HOME")
    cluster.wait_for_log(run_id, "clone")
    cluster.kubectl("scale", server, "--replicas=1")
    cluster.wait_for_state(run_id, "Completed")
