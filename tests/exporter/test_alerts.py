"""Alerts about runs, workers and the server fire by their causes, and resolve, in Prometheus.

Only how long they wait is shortened. Their causes are states, events and heartbeats that a real
server gets; `make test-monitoring` has those that need a cluster.
"""

from typing import Any
from uuid import uuid4

import httpx
import pytest

from prefect_hamilton.metrics import TRACKING_EVENT
from scripts import local_profile
from tests import services
from tests.chart.charts import render
from tests.exported import shorten
from tests.exporter.conftest import Api, until

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

ON = {"enabled": True}
VALUES = {
    "fullnameOverride": "prefect-hamilton",
    "server": {"metrics": True},
    "metrics": ON,
    "serviceMonitor": ON,
    "prometheusRule": ON
    | {
        "thresholds": {
            "lateSeconds": 20,
            "pendingSeconds": 20,
            "failureRuns": 1,
            "staleSeconds": 60,
        }
    },
}


@pytest.fixture(scope="module")
def rules() -> Any:
    """The rules of a release, which wait for seconds only."""
    (rule,) = render(VALUES).of("PrometheusRule")
    shorten(rule)
    return rule["spec"]


def firing(prometheus: services.Service, **labels: str) -> set[str]:
    """Names of the alerts that fire with these labels."""
    url = f"{prometheus.url}/api/v1/alerts"
    answer = httpx.get(url, timeout=30, verify=local_profile.tls()).raise_for_status()
    return {
        each["labels"]["alertname"]
        for each in answer.json()["data"]["alerts"]
        if each["state"] == "firing" and labels.items() <= each["labels"].items()
    }


def test_runs_and_workers(api: Api, prometheus: services.Service) -> None:
    name = f"flow-{uuid4().hex[:8]}"
    api.post("/work_pools/", name=name, type="process", concurrency_limit=2)
    heartbeat = {"name": "worker", "heartbeat_interval_seconds": 5}
    api.post(f"/work_pools/{name}/workers/heartbeat", **heartbeat)
    api.post("/v2/concurrency_limits/", name=name, limit=1)
    deployment = api.new_deployment(name, name)
    waiting = [api.new_run(deployment) for _ in range(3)]
    api.set_states(waiting[0], "Late")
    api.set_states(waiting[1], "Pending")
    api.set_states(waiting[2], "Pending", "Running")
    api.post("/v2/concurrency_limits/increment", names=[name], slots=1)
    for end in ("Completed", "Failed", "Crashed"):
        api.run(deployment, end)
    api.emit("prefect.kubernetes.pod.failed", name, **{"kubernetes.diagnosis": "OOMKilled"})
    api.emit(TRACKING_EVENT, name)

    of_the_pool = {
        "PrefectRunsLate",
        "PrefectRunsStuckPending",
        "PrefectRunsCrashed",
        "PrefectWorkPoolNotReady",
        "PrefectWorkPoolFull",
    }
    seen: set[str] = set()

    def fired() -> bool:
        seen.update(firing(prometheus, work_pool=name), firing(prometheus, flow=name))
        seen.update(firing(prometheus, limit=name), firing(prometheus, diagnosis="OOMKilled"))
        seen.update(firing(prometheus) & {"PrefectTrackingFailing"})
        return seen == of_the_pool | {
            "PrefectRunsFailing",
            "PrefectPodsFailing",
            "PrefectSlotsExhausted",
            "PrefectTrackingFailing",
        }

    until(fired, True, 240)
    for run in waiting:
        api.set_states(run, "Cancelled")
    api.post("/v2/concurrency_limits/decrement", names=[name], slots=1)

    def resolved() -> set[str]:
        api.post(f"/work_pools/{name}/workers/heartbeat", **heartbeat)
        return firing(prometheus)

    until(resolved, set(), 240)


def test_the_server(api: Api, prometheus: services.Service) -> None:
    until(lambda: firing(prometheus), set(), 240)
    api.server.stop()
    try:
        until(lambda: firing(prometheus) >= {"PrefectServerDown", "PrefectMetricsStale"}, True, 240)
    finally:
        api.server.start()
    until(lambda: firing(prometheus), set(), 240)
