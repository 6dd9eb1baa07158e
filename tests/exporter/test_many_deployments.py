"""The exporter with thousands of deployments, whose rows are in a real PostgreSQL."""

from collections.abc import Iterator

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import services
from tests.exporter.conftest import OPTIONS, Exporter, until

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

DEPLOYMENTS = 3000
NEVER = {"flow": "flow-1000", "deployment": "main-3"}
"""The deployment whose run has failed."""
OFTEN = {"flow": "flow-1", "deployment": "main-1"}
"""The one with the last 1,000 successes; that of flow-N/main-1 was N hours before 2025."""
ROWS = """
INSERT INTO flow (name) SELECT 'flow-' || number FROM generate_series(1, 1000) AS number;
INSERT INTO deployment (name, flow_id)
  SELECT 'main-' || number, flow.id FROM generate_series(1, 3) AS number, flow;
INSERT INTO deployment_schedule (deployment_id, schedule, active)
  SELECT id, '{"interval": 86400}', true FROM deployment;
INSERT INTO flow_run (name, flow_id, deployment_id, state_type, state_name, end_time)
  SELECT 'once', flow.id, deployment.id, 'COMPLETED', 'Completed',
    timestamptz '2025-01-01 00:00Z' - split_part(flow.name, '-', 2)::int * interval '1 hour'
  FROM deployment JOIN flow ON flow.id = flow_id;
UPDATE flow_run SET state_type = 'FAILED', state_name = 'Failed' FROM deployment, flow
  WHERE deployment.id = deployment_id AND flow.id = deployment.flow_id
  AND deployment.name = 'main-3' AND flow.name = 'flow-1000';
INSERT INTO flow_run (name, flow_id, deployment_id, state_type, state_name, end_time)
  SELECT 'again', flow.id, deployment.id, 'COMPLETED', 'Completed',
    timestamptz '2025-01-01 00:00Z' + number * interval '1 minute'
  FROM deployment JOIN flow ON flow.id = flow_id, generate_series(1, 1000) AS number
  WHERE flow.name = 'flow-1' AND deployment.name = 'main-1';
INSERT INTO concurrency_limit_v2 (name, "limit", active_slots, active,
    denied_slots, slot_decay_per_second, avg_slot_occupancy_seconds)
  SELECT each, 7, 2, true, 0, 0, 2 FROM (
    SELECT 'deployment:' || id FROM deployment UNION SELECT 'warehouse-writes'
  ) AS limits (each);
"""
NEW_YEAR = 1735689600.0
SLOTS = "prefect_concurrency_slots"
LAST_SUCCESS = "prefect_deployment_last_success_timestamp_seconds"


@pytest.fixture(scope="module")
def server(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    """A server with 1,000 flows that have three deployments each."""
    database = services.create_database(postgres, "many_deployments")
    with services.prefect_server(
        tmp_path_factory.mktemp("server"),
        program=services.OWN_SERVER,
        PREFECT_API_DATABASE_CONNECTION_URL=services.as_prefects(database),
        PREFECT_SERVER_METRICS_ENABLED="true",
    ) as server:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(ROWS)
        yield server


@pytest.fixture(scope="module")
def exporter(
    server: services.Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exporter]:
    """An exporter that began after all that is in the database."""
    env = {"PREFECT_API_URL": f"{server.url}/api"}
    with services.exporter(tmp_path_factory.mktemp("exporter"), *OPTIONS, **env) as service:
        yield Exporter(service)


def count(exporter: Exporter, name: str) -> int:
    """Return the number of series of a metric."""
    return len([each for each, _ in exporter.samples() if each == name])


def requests(server: services.Service, route: str) -> float:
    """Return how often the server was asked."""
    text = httpx.get(f"{server.url}/api/metrics", timeout=30).raise_for_status().text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.endswith("_seconds_count") and sample.labels.get("route") == route
    )


def test_each_deployment_is_listed(exporter: Exporter) -> None:
    """Many share a name, by which alone the API sorts them."""
    until(lambda: count(exporter, "prefect_deployment_schedule_active"), DEPLOYMENTS)


def test_a_limit_beside_those_of_all_deployments_is_known(exporter: Exporter) -> None:
    until(lambda: exporter.sum(SLOTS, limit="warehouse-writes", kind="max"), 7.0)
    assert exporter.sum(SLOTS, limit="warehouse-writes", kind="used") == 2
    assert count(exporter, SLOTS) == 2


def test_each_success_before_the_start_is_known(
    exporter: Exporter, server: services.Service
) -> None:
    until(lambda: count(exporter, LAST_SUCCESS), DEPLOYMENTS - 1)
    assert exporter.sum(LAST_SUCCESS, **NEVER) is None
    assert exporter.sum(LAST_SUCCESS, **OFTEN) == NEW_YEAR + 1000 * 60
    rarely = {"flow": "flow-1000", "deployment": "main-1"}
    assert exporter.sum(LAST_SUCCESS, **rarely) == NEW_YEAR - 1000 * 3600
    assert 0 < requests(server, "/flow_runs/filter") < DEPLOYMENTS / 20
    assert 0 < requests(server, "/flows/filter") < DEPLOYMENTS / 20
