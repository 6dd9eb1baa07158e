"""This project's server or Prefect's own, with a work pool; and a Kubernetes API."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_kubernetes.worker import KubernetesWorker
from prometheus_client.parser import text_string_to_metric_families

from prefect_hamilton.worker import metrics, worker
from tests import services
from tests.server.runs import Api
from tests.worker import kubernetes_api
from tests.worker.kubernetes_api import KubernetesApi


class Pool:
    """A work pool with one deployment."""

    def __init__(
        self,
        server: services.Service,
        base_job_template: dict[str, Any] | None = None,
        type_: str = "kubernetes",
    ) -> None:
        self.server = server
        self.api = Api(server.url)
        self.name = f"pool-{uuid4()}"
        template = base_job_template or KubernetesWorker.get_default_base_job_template()
        self.api.post("/work_pools/", name=self.name, type=type_, base_job_template=template)
        flow = self.api.post("/flows/", name="flow")
        self._deployment = self.api.post(
            "/deployments/", name=self.name, flow_id=flow["id"], work_pool_name=self.name
        )["id"]

    def new_run(self, in_seconds: float = 0, **job_variables: Any) -> UUID:
        """A run of the deployment, scheduled for now or later."""
        due = datetime.now(UTC) + timedelta(seconds=in_seconds)
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
        path = f"/deployments/{self._deployment}/create_flow_run"
        return UUID(self.api.post(path, state=state, job_variables=job_variables)["id"])

    def schedule_since(self, minutes: int) -> list[str]:
        """Runs of a schedule of every minute, each due half a minute after a full one.

        The scheduler has made them that number of minutes ago. The last one is late, too.
        """
        now = datetime.now(UTC)
        schedule = {"interval": 60, "anchor_date": (now - timedelta(seconds=30)).isoformat()}
        path = f"/deployments/{self._deployment}"
        self.api.patch(path, schedules=[{"schedule": schedule, "active": True}])
        begin = now - timedelta(minutes=minutes)
        times = {"start_time": begin.isoformat(), "end_time": now.isoformat()}
        self.api.post(f"{path}/schedule", **times, min_runs=minutes, max_runs=minutes)
        mine = {"id": {"any_": [self._deployment]}}
        found = self.api.post("/flow_runs/filter", deployments=mine, sort="EXPECTED_START_TIME_ASC")
        return [run["id"] for run in found]

    def limit(self, concurrency: int) -> None:
        """Set the concurrency limit of the pool."""
        self.api.patch(f"/work_pools/{self.name}", concurrency_limit=concurrency)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    """The server that the image runs."""
    home = tmp_path_factory.mktemp("own-server")
    with services.prefect_server(home, program=services.OWN_SERVER) as server:
        yield server


@pytest.fixture
def pool(own_server: services.Service) -> Iterator[Pool]:
    """A work pool of this project's server, which is the API of the test process."""
    pool = Pool(own_server)
    with temporary_settings({PREFECT_API_URL: f"{own_server.url}/api"}):
        yield pool


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """The cluster that workers of this test find."""
    with kubernetes_api.serve() as api:
        api.write_kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setattr(
            "kubernetes_asyncio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION",
            str(tmp_path / "kubeconfig"),
        )
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setenv("PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_ENABLED", "false")
        yield api


@pytest.fixture(autouse=True)
def _ended_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no worker wait for the pod of a former attempt: these pods do not end by themselves."""
    monkeypatch.setattr(worker, "END_SECONDS", 0)


class Served:
    """What the worker at a port serves."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/metrics"

    def text(self) -> str:
        return httpx.get(self.url).raise_for_status().text

    def value(self, name: str, **labels: str) -> float:
        """The value of the one sample with these labels."""
        (found,) = [
            sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ]
        return found

    def submissions(self, pool: Pool) -> tuple[float, float]:
        """How many flow runs were submitted, and how many were not."""
        submitted, failed = (
            self.value("prefect_worker_submissions_total", work_pool=pool.name, result=result)
            for result in ("submitted", "failed")
        )
        return submitted, failed


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """The metrics of a worker of this test."""
    port = services.free_port()
    monkeypatch.setenv(metrics.PORT, str(port))
    return Served(port)
