"""What the server tells Prometheus about API requests: durations by route, method and status."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from prefect_hamilton.server.request_metrics import DURATION, RequestMetrics
from tests import services
from tests.profiles import wait_until

pytestmark = pytest.mark.services

PASSWORD = "admin:secret"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of the server that the image runs, with `server.metrics`."""
    home: Path = tmp_path_factory.mktemp("server")
    settings = {
        "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
        "PREFECT_SERVER_METRICS_ENABLED": "true",
    }
    with (
        services.prefect_server(home, program=services.OWN_SERVER, **settings) as server,
        httpx.Client(
            base_url=f"{server.url}/api",
            auth=("admin", "secret"),
            timeout=30,
            transport=services.BusyTransport(),
        ) as client,
    ):
        yield client


def count(api: httpx.Client, route: str, method: str, status: str) -> float:
    """How many requests the server has counted."""
    labels = {"route": route, "method": method, "status": status}
    found = [
        sample.value
        for family in text_string_to_metric_families(api.get("/metrics").text)
        for sample in family.samples
        if sample.name == "prefect_server_request_duration_seconds_count"
        and sample.labels == labels
    ]
    return sum(found)


def test_requests_are_counted_by_the_template_of_their_route(api: httpx.Client) -> None:
    flows = [api.post("/flows/", json={"name": name}).json()["id"] for name in ("one", "two")]
    for flow in flows:
        api.get(f"/flows/{flow}").raise_for_status()

    # A request is counted when its answer has been sent.
    wait_until(lambda: count(api, "/flows/{id:uuid}", "GET", "2xx") == 2)
    text = api.get("/metrics").text
    assert not [flow for flow in flows if flow in text]


def test_what_a_client_has_invented_is_no_label(api: httpx.Client) -> None:
    before = count(api, "other", "GET", "4xx")
    path = f"/{uuid4()}"
    assert api.get(path).status_code == httpx.codes.NOT_FOUND
    # Of WebDAV: Uvicorn lets no method through that nobody has defined.
    assert api.request("PROPFIND", path).status_code == httpx.codes.NOT_FOUND
    assert api.get("/flows/count", auth=None).status_code == httpx.codes.UNAUTHORIZED

    wait_until(lambda: count(api, "other", "GET", "4xx") == before + 2)
    wait_until(lambda: count(api, "other", "other", "4xx") == 1)
    text = api.get("/metrics").text
    assert path not in text
    assert "PROPFIND" not in text


def test_a_request_without_an_answer_is_an_error() -> None:
    async def fail(_: Request) -> Response:
        raise RuntimeError

    app = RequestMetrics(Starlette(routes=[Route("/", fail, methods=["PUT"])]))
    TestClient(app, raise_server_exceptions=False).put("/")

    counted = {
        sample.labels["status"]
        for metric in DURATION.collect()
        for sample in metric.samples
        if sample.name.endswith("_count") and sample.labels["method"] == "PUT"
    }
    assert counted == {"5xx"}
