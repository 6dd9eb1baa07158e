"""What Prometheus learns of the background services, in the server and in a pod of their own."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests import exported, services
from tests.profiles import wait_until

pytestmark = pytest.mark.services

SCHEDULER = "schedule_recent_deployments"
NAMES = {
    "docket_tasks_succeeded_total",
    "docket_task_duration_seconds_count",
    "docket_task_punctuality_seconds_count",
}


@pytest.fixture(params=["server", "background services"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address at which they are served."""
    if request.param == "server":
        with services.prefect_server(
            tmp_path,
            program=services.OWN_SERVER,
            background_services=True,
            PREFECT_SERVER_METRICS_ENABLED="true",
        ) as server:
            yield f"{server.url}/api/metrics"
        return
    with services.background_services(tmp_path) as running:
        yield f"{running.url}/metrics"


def samples(url: str) -> list[Sample]:
    """The samples of Docket."""
    return [
        sample
        for family in text_string_to_metric_families(httpx.get(url).raise_for_status().text)
        if family.name.startswith("docket_")
        for sample in family.samples
    ]


def test_each_service_is_counted_by_its_name(url: str) -> None:
    def counted() -> set[str]:
        of_the_scheduler = (s for s in samples(url) if s.labels == {"docket_task": SCHEDULER})
        return {sample.name for sample in of_the_scheduler if sample.value >= 1}

    wait_until(lambda: counted() >= NAMES)
    assert {key for sample in samples(url) for key in sample.labels} == {"docket_task", "le"}


def test_promtool_accepts_the_metrics(url: str) -> None:
    def of_docket() -> str:
        lines = httpx.get(url).raise_for_status().text.splitlines(keepends=True)
        return "".join(
            line for line in lines if line.partition("docket_")[0] in ("", "# HELP ", "# TYPE ")
        )

    wait_until(lambda: bool(of_docket()))
    exported.check(of_docket())
