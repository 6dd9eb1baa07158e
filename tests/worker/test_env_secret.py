"""The environment of a flow run is in a Secret that its Job owns, and not in the Job."""

import logging
from typing import Any

import pytest

from prefect_hamilton.worker.sweep import Sweep
from tests.worker.conftest import Pool
from tests.worker.kubernetes_api import KubernetesApi
from tests.worker.test_worker import take_up, working

pytestmark = [pytest.mark.services, pytest.mark.anyio]

LOGGER = logging.getLogger("tests.env_secret")

PREFIX = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_"


@pytest.fixture(autouse=True)
def is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}STORE_ENV_AS_SECRET", "true")


def container_of(kubernetes: KubernetesApi) -> dict[str, Any]:
    (job,) = kubernetes.jobs.values()
    found: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    return found


async def test_the_job_refers_to_a_secret_that_it_owns(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    variables = {"PASSWORD": "s3cret", "PLACE": "at $(PASSWORD) and $(NOWHERE)", "DOLLAR": "$(X)"}
    async with working(pool) as worker:
        run = pool.new_run(env=variables)
        await take_up(worker, run)

    container = container_of(kubernetes)
    (name,) = kubernetes.secrets
    assert container["envFrom"] == [{"secretRef": {"name": name}}]
    # Kubernetes replaces references only in variables of the Job itself.
    assert container["env"] == [{"name": "PLACE", "value": variables["PLACE"]}]
    secret = kubernetes.secrets[name]
    data = secret["stringData"]
    assert {key: data.get(key) for key in variables} == variables | {"PLACE": None}
    assert data["PREFECT__FLOW_RUN_ID"] == str(run)
    ((job, content),) = kubernetes.jobs.items()
    assert name == f"{job}-env"
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job}
    assert secret["metadata"]["ownerReferences"] == [owner | {"uid": content["metadata"]["uid"]}]
    assert secret["metadata"]["labels"]["prefect.io/flow-run-id"] == str(run)
    assert "s3cret" not in str(kubernetes.jobs)


async def test_the_password_of_the_api_stays_a_reference(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{PREFIX}API_AUTH_STRING_SECRET_NAME", "auth")
    monkeypatch.setenv(f"{PREFIX}API_AUTH_STRING_SECRET_KEY", "auth-string")
    async with working(pool) as worker:
        run = pool.new_run(env={"PREFECT_API_AUTH_STRING": "user:s3cret"})
        await take_up(worker, run)

    reference = {"secretKeyRef": {"name": "auth", "key": "auth-string"}}
    assert container_of(kubernetes)["env"] == [
        {"name": "PREFECT_API_AUTH_STRING", "valueFrom": reference}
    ]
    assert "s3cret" not in str(kubernetes.secrets)


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_lost_answer_leaves_one_job_and_its_secret(
    pool: Pool, kubernetes: KubernetesApi, lost: int
) -> None:
    async with working(pool) as worker:
        run = pool.new_run(env={"PASSWORD": "s3cret"})
        kubernetes.loses_answers = lost
        await take_up(worker, run)

    (name,) = kubernetes.secrets
    assert container_of(kubernetes)["envFrom"] == [{"secretRef": {"name": name}}]
    assert kubernetes.secrets[name]["stringData"]["PASSWORD"] == "s3cret"
    assert pool.api.state(run)["type"] == "PENDING"


async def test_a_worker_without_the_right_leaves_no_job_and_says_why(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    kubernetes.may_create_secrets = False
    async with working(pool) as worker:
        run = pool.new_run(env={"PASSWORD": "s3cret"})
        await take_up(worker, run)

    assert kubernetes.jobs == {}
    state = pool.api.state(run)
    assert state["type"] == "CRASHED"
    assert "Unable to create the Secret" in state["message"]
    assert "secrets is forbidden" in state["message"]
    assert "s3cret" not in state["message"]


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_job_whose_worker_died_before_its_secret_is_replaced(
    pool: Pool, kubernetes: KubernetesApi, is_there: bool
) -> None:
    async with working(pool) as worker:
        run = pool.new_run(env={"PASSWORD": "s3cret"})
        await take_up(worker, run)
        ((job, _),) = kubernetes.jobs.items()
        kubernetes.start_pods()
        if not is_there:
            kubernetes.secrets.clear()
            error = {"reason": "CreateContainerConfigError"}
            error["message"] = f'secret "{job}-env" not found'
            (status,) = kubernetes.pod(job)["status"]["containerStatuses"]
            status["state"] = {"waiting": error}

        await Sweep(worker.client, pool.name, LOGGER, grace_seconds=0).sweep()

        assert (job in kubernetes.jobs) == is_there
        assert pool.api.state(run)["type"] == ("PENDING" if is_there else "SCHEDULED")
        await take_up(worker, run)
    ((_, content),) = kubernetes.jobs.items()
    assert set(kubernetes.secrets) == {f"{content['metadata']['name']}-env"}
