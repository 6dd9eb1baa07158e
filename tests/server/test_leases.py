"""Leases of concurrency limits outlive the server: runs keep their slots, and give them back."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRunPolicy, State
from prefect.client.schemas.responses import SetStateStatus
from prefect.server.concurrency.lease_storage import ConcurrencyLimitLeaseMetadata
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import (
    AwaitingRetry,
    Cancelled,
    Completed,
    Failed,
    Paused,
    Pending,
    Running,
    Suspended,
)
from prefect.types._concurrency import ConcurrencyLeaseHolder

from prefect_hamilton.server import lease_storage
from prefect_hamilton.server.lease_storage import LEASES, ConcurrencyLeaseStorage
from tests import services
from tests.chart.charts import env, pod_template, render
from tests.profiles import wait_until
from tests.server.test_migrate import MIGRATE, Database

pytestmark = pytest.mark.services

NAME = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def database(postgres: str) -> Database:
    database = Database(postgres, "leases")
    code, output = database.run(*MIGRATE)
    assert code == 0, output
    return database


@pytest.fixture
def url(database: Database) -> str:
    return services.as_prefects(database.url)


Starts = Callable[[], AbstractContextManager[services.Service]]


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The database, and the setting of the chart."""
    values = {"server": {"sqlite": {"enabled": True}}, "hamiltonUi": {"enabled": False}}
    if request.param == "postgresql":
        values = {}
        database = request.getfixturevalue("url")
    else:
        database = f"sqlite+aiosqlite:///{tmp_path}/prefect.db"
    template = pod_template(render(values).get("Deployment", "server"))
    assert template is not None
    (server,) = template["spec"]["containers"]
    return {NAME: env(server)[NAME], "PREFECT_API_DATABASE_CONNECTION_URL": database}


@pytest.fixture
def start(settings: dict[str, str], tmp_path: Path) -> Starts:
    """Start the server; again with what it has kept."""
    return partial(
        services.prefect_server,
        tmp_path,
        program=services.OWN_SERVER,
        port=services.free_port(),
        **settings,
    )


def client_of(server: services.Service) -> SyncPrefectClient:
    with temporary_settings({PREFECT_API_URL: f"{server.url}/api"}):
        return get_client(sync_client=True)


def deployment_with_a_limit(client: SyncPrefectClient, strategy: str = "ENQUEUE") -> UUID:
    flow = client.create_flow_from_name("limited")
    deployment = client.request(
        "POST",
        "/deployments/",
        json={
            "name": str(uuid4()),
            "flow_id": str(flow),
            "concurrency_limit": 1,
            "concurrency_options": {"collision_strategy": strategy},
        },
    )
    return UUID(deployment.json()["id"])


def active_slots(client: SyncPrefectClient, deployment: UUID) -> int:
    found = client.read_deployment(deployment).global_concurrency_limit
    assert found is not None
    return found.active_slots


def test_runs_keep_their_slot_when_the_server_is_restarted(start: Starts) -> None:
    """One runs, one has only been taken up; each is alone in its deployment."""
    with start() as server, client_of(server) as client:
        deployments = [deployment_with_a_limit(client) for _ in range(2)]
        runs = [client.create_flow_run_from_deployment(each).id for each in deployments]
        for run in runs:
            client.set_flow_run_state(run, Pending())
        client.set_flow_run_state(runs[0], Running())
        state = client.read_flow_run(runs[0]).state
        assert state is not None
        lease = state.state_details.deployment_concurrency_lease_id
        assert lease is not None

    with start() as server, client_of(server) as client:
        client.renew_concurrency_lease(lease, 300)
        assert client.set_flow_run_state(runs[1], Running()).status == SetStateStatus.ACCEPT
        assert [active_slots(client, each) for each in deployments] == [1, 1]
        for run in runs:
            client.set_flow_run_state(run, Completed())
        assert [active_slots(client, each) for each in deployments] == [0, 0]


@pytest.mark.parametrize("strategy", ["ENQUEUE", "CANCEL_NEW"])
def test_a_run_whose_pod_ends_between_two_tries_gives_its_slot_back(
    start: Starts, strategy: str
) -> None:
    with start() as server, client_of(server) as client:
        deployment = deployment_with_a_limit(client, strategy)
        run = client.create_flow_run_from_deployment(deployment).id
        for state in (Pending(), Running()):
            assert client.set_flow_run_state(run, state).status == SetStateStatus.ACCEPT
        client.update_flow_run(run, empirical_policy=FlowRunPolicy(retries=1, retry_delay=3600))
        assert client.set_flow_run_state(run, Failed()).status == SetStateStatus.REJECT
        assert active_slots(client, deployment) == 1  # its process goes on

        client.set_flow_run_state(run, AwaitingRetry())

        assert active_slots(client, deployment) == 0
        assert client.set_flow_run_state(run, Pending()).status == SetStateStatus.ACCEPT
        assert active_slots(client, deployment) == 1


def test_a_run_whose_pod_was_ended_is_not_cancelled_because_another_has_its_slot(
    start: Starts,
) -> None:
    with start() as server, client_of(server) as client:
        deployment = deployment_with_a_limit(client, "CANCEL_NEW")
        ended, other, new = (
            client.create_flow_run_from_deployment(deployment).id for _ in range(3)
        )
        for state in (Pending(), Running(), AwaitingRetry()):
            client.set_flow_run_state(ended, state)
        client.set_flow_run_state(other, Pending())

        waits = "AwaitingConcurrencySlot"
        for run, name in ((ended, waits), (ended, waits), (new, "Cancelled")):
            client.set_flow_run_state(run, Pending())
            state = client.read_flow_run(run).state
            assert state is not None
            assert state.name == name
        # A request that its pod had sent before it ended.
        late = client.set_flow_run_state(ended, Running())
        assert late.status == SetStateStatus.ABORT


@pytest.mark.parametrize(
    ("end", "force"),
    [(Completed(), False), (Cancelled(), False), (AwaitingRetry(), False), (Failed(), True)],
)
def test_a_run_keeps_its_slot_while_its_process_waits_in_a_pause(
    start: Starts, end: State[Any], force: bool
) -> None:
    with start() as server, client_of(server) as client:
        deployment = deployment_with_a_limit(client)
        run = client.create_flow_run_from_deployment(deployment).id
        for state in (Pending(), Running(), Paused(timeout_seconds=3600)):
            assert client.set_flow_run_state(run, state).status == SetStateStatus.ACCEPT
        paused = client.read_flow_run(run).state
        assert paused is not None
        lease = paused.state_details.deployment_concurrency_lease_id
        assert lease is not None
        client.renew_concurrency_lease(lease, 300)
        assert active_slots(client, deployment) == 1

        if end.is_completed():
            assert client.set_flow_run_state(run, Running()).status == SetStateStatus.ACCEPT
            assert active_slots(client, deployment) == 1
        assert client.set_flow_run_state(run, end, force).status == SetStateStatus.ACCEPT
        assert active_slots(client, deployment) == 0


def test_background_services_in_a_process_of_their_own_give_the_slot_of_a_pause_back(
    start: Starts, settings: dict[str, str], tmp_path: Path
) -> None:
    """They force Failed for a pause that nobody ended."""
    often = {"PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "0.5"}
    with start() as server, client_of(server) as client:
        deployment = deployment_with_a_limit(client)
        run = client.create_flow_run_from_deployment(deployment).id
        for state in (Pending(), Running(), Paused(timeout_seconds=1)):
            assert client.set_flow_run_state(run, state).status == SetStateStatus.ACCEPT
        assert active_slots(client, deployment) == 1
        with services.background_services(tmp_path, **settings, **often):
            wait_until(lambda: is_failed(client, run))
        assert active_slots(client, deployment) == 0


def is_failed(client: SyncPrefectClient, run: UUID) -> bool:
    state = client.read_flow_run(run).state
    return state is not None and state.is_failed()


def test_a_run_that_is_suspended_gives_its_slot_back(start: Starts) -> None:
    with start() as server, client_of(server) as client:
        deployment = deployment_with_a_limit(client)
        run = client.create_flow_run_from_deployment(deployment).id
        for state in (Pending(), Running(), Suspended(timeout_seconds=3600)):
            assert client.set_flow_run_state(run, state).status == SetStateStatus.ACCEPT
        assert active_slots(client, deployment) == 0


def use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this be the database of the server that this process is."""
    interface = SimpleNamespace(database_config=SimpleNamespace(connection_url=url))
    monkeypatch.setattr(lease_storage, "provide_database_interface", lambda: interface)


@pytest.fixture
async def storage(url: str, monkeypatch: pytest.MonkeyPatch) -> ConcurrencyLeaseStorage:
    """The storage of a server that has run for a while, without leases and workers."""
    monkeypatch.setattr(lease_storage, "_quiet_until", datetime.now(UTC) - HOUR)
    use(url, monkeypatch)
    async with lease_storage.connected() as connection:
        await connection.execute(LEASES.delete())
        await connection.execute(sa.text("DELETE FROM work_pool"))
    return ConcurrencyLeaseStorage()


@pytest.mark.anyio
async def test_a_lease_is_found_until_it_is_revoked(storage: ConcurrencyLeaseStorage) -> None:
    limit, other = uuid4(), uuid4()
    holder = ConcurrencyLeaseHolder(type="flow_run", id=uuid4())
    metadata = ConcurrencyLimitLeaseMetadata(slots=2, holder=holder)
    lease = await storage.create_lease([limit, other], HOUR, metadata)
    without = await storage.create_lease([other], HOUR)

    assert await storage.read_lease(lease.id) == lease
    assert await storage.read_lease(without.id) == without
    assert await storage.list_holders_for_limit(limit) == [(lease.id, holder)]
    assert set(await storage.read_active_lease_ids()) == {lease.id, without.id}
    assert len(await storage.read_active_lease_ids(limit=1, offset=1)) == 1
    assert await storage.read_expired_lease_ids() == []

    await storage.revoke_lease(lease.id)

    assert await storage.read_lease(lease.id) is None
    assert await storage.renew_lease(lease.id, HOUR) is False
    assert await storage.list_holders_for_limit(limit) == []
    assert await storage.read_active_lease_ids() == [without.id]


@pytest.mark.anyio
async def test_a_lease_that_is_not_renewed_expires(storage: ConcurrencyLeaseStorage) -> None:
    kept, left = [
        await storage.create_lease([uuid4()], -HOUR, ConcurrencyLimitLeaseMetadata(slots=1))
        for _ in range(2)
    ]
    assert set(await storage.read_expired_lease_ids()) == {kept.id, left.id}
    assert len(await storage.read_expired_lease_ids(limit=1)) == 1

    assert await storage.renew_lease(kept.id, HOUR)

    assert await storage.read_expired_lease_ids() == [left.id]
    assert await storage.read_active_lease_ids() == [kept.id]


async def hear_worker(seconds_ago: float) -> None:
    """Let the only worker have sent its last heartbeat then."""
    heard = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    async with lease_storage.connected() as connection:
        await connection.execute(sa.text("DELETE FROM work_pool"))
        pool = "INSERT INTO work_pool (name, type) VALUES ('pool', 'kubernetes') RETURNING id"
        of_pool = {"id": await connection.scalar(sa.text(pool)), "heard": heard}
        worker = """
            INSERT INTO worker (name, work_pool_id, last_heartbeat_time, status)
            VALUES ('worker', :id, :heard, 'ONLINE')"""
        await connection.execute(sa.text(worker), of_pool)


@pytest.mark.anyio
@pytest.mark.parametrize(("seconds", "is_kept"), [(30, False), (90, True), (1000, False)])
async def test_no_lease_is_taken_back_while_workers_do_not_reach_the_api(
    storage: ConcurrencyLeaseStorage, seconds: float, is_kept: bool
) -> None:
    """In the process of the background services, which does not see what becomes of requests."""
    lease = await storage.create_lease([uuid4()], -HOUR)
    await hear_worker(seconds)
    expected = [] if is_kept else [lease.id]

    assert await storage.read_expired_lease_ids() == expected

    # Also when the API is back, until every holder has renewed its lease.
    await hear_worker(0)
    assert await storage.read_expired_lease_ids() == expected


@pytest.mark.anyio
@pytest.mark.parametrize("after", ["start", "outage"])
async def test_no_lease_is_taken_back_before_its_holder_could_renew_it(
    storage: ConcurrencyLeaseStorage, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    lease = await storage.create_lease([uuid4()], -HOUR)
    if after == "start":
        monkeypatch.setattr(lease_storage, "_quiet_until", lease_storage.later())
    else:
        with pytest.MonkeyPatch.context() as patch:
            use("postgresql+asyncpg://postgres@127.0.0.1:9/nothing", patch)
            with pytest.raises(OSError):
                await storage.read_lease(lease.id)
    assert await storage.read_expired_lease_ids() == []

    now = lease_storage.later() + timedelta(seconds=1)
    monkeypatch.setattr(lease_storage, "now", lambda: now)
    assert await storage.read_expired_lease_ids() == [lease.id]
