"""Every panel whose metrics can be had here shows something in a real Prometheus."""

import os
import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect_kubernetes.worker import KubernetesWorker

from charts.schema.dashboards import DASHBOARDS
from charts.schema.dashboards.model import Panel, Query
from charts.schema.dashboards.promql import chosen
from prefect_hamilton.metrics import EVENT, TRACKING_EVENT
from prefect_hamilton.worker import standby
from tests import services
from tests.exporter.conftest import Api, until
from tests.worker import kubernetes_api

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

WORKERS = "workers"
"""The pool with a worker, where runs do not stay as they are."""


@pytest.fixture(scope="module")
def worker_port() -> int:
    return services.free_port()


@pytest.fixture(scope="module")
def worker(
    api: Api, worker_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[services.Service]:
    """A worker with standby pods that has submitted a run of its pool `workers`."""
    template = KubernetesWorker.get_default_base_job_template()
    api.post("/work_pools/", name=WORKERS, type="kubernetes", base_job_template=template)
    folder = tmp_path_factory.mktemp("worker")
    with kubernetes_api.serve() as kubernetes:
        kubernetes.write_kubeconfig(folder / "kubeconfig")
        settings = {
            standby.COUNT: "1",
            "KUBECONFIG": str(folder / "kubeconfig"),
            "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_ENABLED": "false",
            # Without them, standby pods would contain the password.
            "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_NAME": "auth",
            "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_KEY": "auth-string",
        }
        with services.kubernetes_worker(
            folder, WORKERS, worker_port, **api.env, **settings
        ) as service:
            api.new_run(api.new_deployment("worked", WORKERS))
            yield service


@pytest.fixture(scope="module")
def flow(api: Api, prometheus: services.Service, worker: services.Service) -> str:
    """A flow with good, failed, crashed, late, pending and running runs, in a pool of its name."""
    assert prometheus.alive
    assert worker.alive
    flow = f"flow-{uuid4().hex[:8]}"
    api.post("/work_pools/", name=flow, type="process", concurrency_limit=7)
    api.post(f"/work_pools/{flow}/workers/heartbeat", name="worker")
    api.post("/v2/concurrency_limits/", name=flow, limit=3)
    api.new_automation(flow)
    off = {"schedule": {"interval": 86400}, "active": False}
    deployment = api.new_deployment(flow, flow, schedules=[off])
    for end in ("Completed", "Failed", "Crashed"):
        api.run(deployment, end)
    api.set_states(api.new_run(deployment), "Pending", "Running")
    api.set_states(api.new_run(deployment), "Pending")
    api.set_states(api.new_run(deployment, due=timedelta(minutes=10)), "Late")
    payload = {"task": "load", "seconds": 1.5, "rows_read": 3, "rows_rejected": 1}
    api.emit(EVENT, flow, payload=payload)
    api.emit(TRACKING_EVENT, flow)
    api.emit("prefect.kubernetes.pod.failed", flow, **{"kubernetes.diagnosis": "OOMKilled"})
    return flow


def series(
    prometheus: services.Service, query: Query, flow: str, *pools: str
) -> list[dict[str, str]]:
    """Labels of what a query returns for a flow and work pools."""
    choices = {"namespace": "flows", "work_pool": "|".join(pools), "flow": flow}
    expression = chosen(query.expr, "1h", "1h", **choices)
    return [each["metric"] for each in services.ask(prometheus, expression)]


@pytest.mark.parametrize(
    "panel",
    [
        pytest.param(panel, id=f"{name}: {panel.title}")
        for name, board in DASHBOARDS.items()
        for panel in board.panels
        if panel.source in {"metrics", "worker", "server"}
    ],
)
def test_a_panel_shows_what_its_legend_names(
    panel: Panel, flow: str, prometheus: services.Service
) -> None:
    for query in panel.queries:
        labels = set(re.findall(r"{{(\w+)}}", query.legend))

        def shown(query: Query = query, labels: set[str] = labels) -> bool:
            found = series(prometheus, query, flow, flow, WORKERS)
            return bool(found) and all(labels <= set(each) for each in found)

        until(shown, True)


def test_what_ended_is_shown_by_state(flow: str, prometheus: services.Service) -> None:
    panels = {panel.title: panel for panel in DASHBOARDS["flow-runs"].panels}
    (ended,) = panels["Ended flow runs"].queries
    (progress,) = panels["Flow runs in progress"].queries

    def states(query: Query) -> set[str]:
        return {each["state"] for each in series(prometheus, query, flow, flow)}

    until(lambda: states(ended), {"Completed", "Failed", "Crashed"})
    until(lambda: states(progress), {"Running", "Pending", "Late"})


def test_the_page_about_an_own_metric_is_true(
    api: Api, prometheus: services.Service, tmp_path: Path
) -> None:
    page = (services.ROOT / "docs" / "my-metric.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "daily_orders.py").write_text(program)
    services.output(sys.executable, "daily_orders.py", folder=tmp_path, env=os.environ | api.env)
    expressions = re.findall(r"```promql\n(.*?)```", page, re.DOTALL)

    def values() -> list[float]:
        found = [services.ask(prometheus, expression) for expression in expressions]
        return [float(each["value"][1]) for series in found for each in series]

    # A new counter is 0 at first.
    until(lambda: [value > 0 for value in values()], [True] * 3)
    _, share, seconds = values()
    assert share == pytest.approx(0.5)
    assert seconds <= 1
    (sample,) = re.findall(r"^flows_task_rows_read_total{.+} 2.0$", page, re.MULTILINE)
    (found,) = services.ask(prometheus, sample.removesuffix(" 2.0"))
    assert found["value"][1] == "2"
