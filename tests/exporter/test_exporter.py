"""The exporter of metrics, with a real Prefect server and a real Prometheus."""

import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from tests import exported, services
from tests.exporter.conftest import OPTIONS, Api, Exporter, until
from tests.server import tcp_proxy

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

TRANSITIONS = "prefect_flow_run_transitions_total"
FLOW = """
from prefect import flow, task
from prefect_hamilton.metrics import measure

@task
def load():
    with measure("load") as metrics:
        metrics.rows_read = 10

@flow(name="{name}")
def run():
    load()

for _ in range(3):
    run()
"""

UNTRACKED = """
import sys
from prefect import flow, task
from prefect_hamilton import dataflow

def one() -> int:
    return 1

@task
def load():
    dataflow.execute(sys.modules[__name__], ["one"], picture=False)

@flow(name="{name}")
def run():
    load()
    load()

run()
"""


def name() -> str:
    return f"flow-{uuid4().hex[:8]}"


def test_runs_are_counted_by_state(api: Api, exporter: Exporter) -> None:
    flow, pool = name(), api.new_pool()
    deployment = api.new_deployment(flow, pool)
    for end in ("Completed", "Completed", "Failed", "Crashed"):
        api.run(deployment, end)
    labels = {"flow": flow, "deployment": "main"}
    for state, count in {"Completed": 2, "Failed": 1, "Crashed": 1, "Running": 4}.items():
        found = {**labels, "work_pool": pool, "work_queue": "default", "state": state}
        until(lambda found=found: exporter.sum(TRANSITIONS, **found), float(count))
    durations = "prefect_flow_run_duration_seconds_count"
    assert exporter.sum(durations, **labels) == 4
    assert exporter.sum(durations, **labels, state="Completed") == 2
    until(lambda: exporter.sum("prefect_flow_run_start_delay_seconds_count", work_pool=pool), 4.0)
    assert exporter.sum("prefect_flow_run_pending_seconds_count", work_pool=pool) == 4
    assert exporter.sum("prefect_deployment_last_success_timestamp_seconds", **labels)


def test_gauges_say_what_is_now(api: Api, exporter: Exporter) -> None:
    flow, pool = name(), api.new_pool()
    on = {"schedule": {"interval": 86400}, "active": True}
    deployment = api.new_deployment(flow, pool, schedules=[on])
    api.set_states(api.new_run(deployment, due=timedelta(minutes=10)), "Late")
    api.set_states(api.new_run(deployment), "Pending", "InfrastructurePending")
    api.set_states(api.new_run(deployment), "Pending", "Running")
    api.post("/v2/concurrency_limits/", name=flow, limit=3)
    api.new_deployment(name(), pool, concurrency_limit=1)
    gauge = {"work_pool": pool}

    def lateness_of(pool: str) -> float | None:
        return exporter.sum("prefect_flow_run_oldest_late_seconds", work_pool=pool)

    for state in ("Late", "InfrastructurePending", "Running"):
        until(lambda state=state: exporter.sum("prefect_flow_runs", **gauge, state=state), 1.0)
    lateness = lateness_of(pool)
    assert lateness is not None
    assert lateness >= 600
    unmarked = api.new_pool()
    api.new_run(api.new_deployment(name(), unmarked), due=timedelta(minutes=20))
    api.new_run(api.new_deployment(name(), unmarked), due=-timedelta(minutes=20))
    # The server's service that marks late runs may have stopped.
    until(lambda: (lateness_of(unmarked) or 0) >= 1200, True)
    # The state of a run whose pod cannot start.
    assert exporter.sum("prefect_flow_run_oldest_pending_seconds", **gauge)
    assert exporter.sum("prefect_work_pool_concurrency_limit", **gauge) == 7
    assert exporter.sum("prefect_work_pool_ready", **gauge) == 0
    api.post(f"/work_pools/{pool}/workers/heartbeat", name="worker")
    until(lambda: exporter.sum("prefect_work_pool_ready", **gauge), 1.0)
    assert exporter.sum("prefect_worker_heartbeat_age_seconds", **gauge) is not None
    assert exporter.sum("prefect_concurrency_slots", limit=flow, kind="max") == 3
    assert exporter.sum("prefect_concurrency_slots", limit=flow, kind="used") == 0
    limits = {dict(labels)["limit"] for key, labels in exporter.samples() if key.endswith("_slots")}
    assert not [limit for limit in limits if limit.startswith("deployment:")]
    active = "prefect_deployment_schedule_active"
    until(lambda: exporter.sum(active, flow=flow, deployment="main"), 1.0)


def test_an_unknown_name_of_a_state_is_no_label(api: Api, exporter: Exporter) -> None:
    flow = name()
    deployment = api.new_deployment(flow, api.new_pool())
    api.set_states(api.new_run(deployment), "Strange 42")
    until(lambda: exporter.sum(TRANSITIONS, flow=flow, state="Running"), 1.0)
    assert "Strange 42" not in exporter.text()


def test_series_of_what_was_deleted_are_dropped(api: Api, exporter: Exporter) -> None:
    flow, pool = name(), api.new_pool()
    deployment = api.new_deployment(flow, pool)
    api.run(deployment)
    until(lambda: exporter.sum(TRANSITIONS, flow=flow, state="Completed"), 1.0)
    api.delete(f"/deployments/{deployment}")
    until(lambda: exporter.sum(TRANSITIONS, flow=flow), None)
    until(lambda: exporter.sum("prefect_work_pool_ready", work_pool=pool), 0.0)
    api.delete(f"/work_pools/{pool}")
    until(lambda: f'"{pool}"' in exporter.text(), False)


def test_series_of_what_is_gone_when_deployments_change_are_dropped(
    api: Api, exporter: Exporter
) -> None:
    """No deployment is deleted here: a flow without any, an automation and a work queue are."""
    flow, kept, pool = name(), name(), api.new_pool()
    deployment = api.new_deployment(kept, pool, work_queue_name="gone")
    automation = api.new_automation(kept)
    api.run(deployment, "Failed")
    flow_id = api.post("/flows/", name=flow)["id"]
    run = api.post("/flow_runs/", flow_id=flow_id, state={"type": "SCHEDULED"})["id"]
    api.set_states(run, "Running", "Completed")
    of_flow, of_queue = {"flow": flow}, {"work_pool": pool, "work_queue": "gone"}
    of_automation = {"automation": kept}
    until(lambda: exporter.sum(TRANSITIONS, **of_flow, state="Completed"), 1.0)
    until(lambda: exporter.sum(TRANSITIONS, **of_queue, state="Failed"), 1.0)
    until(lambda: exporter.sum("prefect_automation_actions_total", **of_automation), 1.0)
    api.delete(f"/flows/{flow_id}")
    api.delete(f"/automations/{automation}")
    api.delete(f"/work_pools/{pool}/queues/gone")
    api.run(api.new_deployment(kept, pool, name="other"))
    until(lambda: exporter.sum(TRANSITIONS, **of_flow), None)
    until(lambda: exporter.sum(TRANSITIONS, **of_queue), None)
    until(lambda: exporter.sum("prefect_automation_actions_total", **of_automation), None)
    of_pool = {"work_pool": pool, "work_queue": "default", "flow": kept}
    until(lambda: exporter.sum(TRANSITIONS, **of_pool, state="Completed"), 1.0)


def test_rows_of_all_runs_add_up_in_prometheus(
    api: Api, exporter: Exporter, prometheus: services.Service
) -> None:
    flow = name()
    program = FLOW.format(name=flow)
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env=os.environ | api.env,
        capture_output=True,
    )
    increase = f'sum(increase(flows_task_rows_read_total{{flow="{flow}"}}[1h]))'

    def rows() -> int | None:
        result = services.ask(prometheus, increase)
        return round(float(result[0]["value"][1])) if result else None

    # increase() extrapolates to the ends of the hour by half an interval of scrapes.
    until(lambda: rows() in range(30, 36), True)
    assert exporter.sum("flows_task_rows_read_total", flow=flow, task="load") == 30


def test_flow_runs_that_are_not_tracked_are_counted_once(api: Api, exporter: Exporter) -> None:
    flow = name()
    away = f"http://127.0.0.1:{services.free_port()}"
    settings = {
        "HAMILTON_UI_USERNAME": "flows@example.org",
        "HAMILTON_UI_PROJECT_ID": "1",
        "HAMILTON_API_URL": away,
    }
    subprocess.run(
        [sys.executable, "-c", UNTRACKED.format(name=flow)],
        check=True,
        env=os.environ | api.env | settings,
        capture_output=True,
    )
    until(lambda: exporter.sum("flows_tracking_failures_total", flow=flow), 1.0)


def test_promtool_accepts_the_metrics(exporter: Exporter) -> None:
    exported.check(exporter.text())


def test_no_label_holds_an_id_or_a_name_of_a_run(api: Api, exporter: Exporter) -> None:
    run = api.run(api.new_deployment(name(), api.new_pool()))
    run_name = api.post("/flow_runs/filter", flow_runs={"id": {"any_": [run]}})[0]["name"]
    until(lambda: exporter.sum("prefect_metrics_up"), 1.0)
    assert run_name not in exporter.text()
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-", exporter.text())


def test_every_run_counts_once_when_the_server_restarts(api: Api, exporter: Exporter) -> None:
    flow = name()
    deployment = api.new_deployment(flow, api.new_pool())
    for _ in range(3):
        api.run(deployment)
    until(lambda: exporter.sum(TRANSITIONS, flow=flow, state="Completed"), 3.0)
    api.server.stop()
    assert exporter.sum(TRANSITIONS, flow=flow, state="Completed") == 3  # still served
    api.server.start()
    for _ in range(3):
        api.run(deployment)
    stored = exporter.sum("prefect_metrics_last_refresh_timestamp_seconds") or 0.0
    until(lambda: exporter.sum(TRANSITIONS, flow=flow, state="Completed"), 6.0)
    refreshed = "prefect_metrics_last_refresh_timestamp_seconds"
    until(lambda: (exporter.sum(refreshed) or 0.0) > stored + 20, True)
    assert exporter.sum(TRANSITIONS, flow=flow, state="Completed") == 6
    warnings = exporter.service.log.read_text().splitlines()
    assert len([line for line in warnings if "trying again" in line]) <= 2, warnings


def test_runs_count_that_ended_while_the_exporter_was_down(api: Api, tmp_path: Path) -> None:
    flow = name()
    deployment = api.new_deployment(flow, api.new_pool())
    options = (*OPTIONS, "--position", "Release-Metrics")
    with services.exporter(tmp_path, *options, **api.env) as service:
        exporter = Exporter(service)
        until(lambda: exporter.sum("prefect_metrics_up"), 1.0)
        for _ in range(2):
            api.run(deployment)
        until(lambda: exporter.sum(TRANSITIONS, flow=flow, state="Completed"), 2.0)
    for _ in range(3):
        api.run(deployment)
    with services.exporter(tmp_path, *options, **api.env) as service:
        exporter = Exporter(service)
        until(lambda: exporter.sum(TRANSITIONS, flow=flow, state="Running"), 3.0)
        until(lambda: exporter.sum(TRANSITIONS, flow=flow, state="Completed"), 3.0)


def test_events_that_the_stream_brings_last_are_late_and_count_once(
    api: Api, tmp_path: Path
) -> None:
    flow = name()
    deployment = api.new_deployment(flow, api.new_pool())
    ended = {"flow": flow, "state": "Completed"}
    with tcp_proxy.proxy(api.server.port) as between:
        env = api.env | {"PREFECT_API_URL": f"http://127.0.0.1:{between.port}/api"}
        with services.exporter(tmp_path, *OPTIONS, **env) as service:
            exporter = Exporter(service)
            until(lambda: exporter.sum("prefect_metrics_up"), 1.0)
            api.run(deployment)
            until(lambda: bool(exporter.sum("prefect_metrics_events_total", source="stream")), True)
            between.hold_answers(b"GET /api/events/out")
            api.run(deployment)
            until(lambda: exporter.sum(TRANSITIONS, **ended), 2.0)  # from the stored events
            between.speak()
            late = float(OPTIONS[-1])  # the age from which on stored events are read
            until(lambda: (exporter.sum("prefect_metrics_event_delay_seconds") or 0) >= late, True)
            assert exporter.sum(TRANSITIONS, **ended) == 2


def test_it_serves_while_there_is_no_server(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{services.free_port()}/api"
    once = {"PREFECT_CLIENT_MAX_RETRIES": "0"}
    with services.exporter(tmp_path, *OPTIONS, PREFECT_API_URL=url, **once) as service:
        exporter = Exporter(service)
        until(lambda: "trying again" in service.log.read_text(), True)
        assert exporter.sum("prefect_metrics_up") == 0
        assert service.alive


def test_no_api_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect_hamilton.exporter", "--port", str(services.free_port())],
        env=os.environ | {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "PREFECT_API_URL is not set: set it to the API whose metrics you want."
    ]
