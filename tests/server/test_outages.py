"""What the background services get while the database is unavailable is stored and evaluated."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import anyio
import pytest
import sqlalchemy as sa
from prefect.server.database import provide_database_interface
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from prefect_hamilton.server import outages
from tests import services
from tests.profiles import wait_until
from tests.server.runs import Api
from tests.server.tcp_proxy import TcpProxy, proxy

pytestmark = [pytest.mark.services, pytest.mark.anyio]

WAITING = (
    "Events wait for the database",
    "States of task runs wait for the database",
    "The evaluation of an event waits for the database",
)


@pytest.fixture
def database(postgres: str) -> str:
    return services.as_prefects(services.create_database(postgres, "outages"))


@pytest.fixture
def between(database: str) -> Iterator[TcpProxy]:
    """What stands between a server and PostgreSQL."""
    port = urlsplit(database).port
    assert port
    with proxy(port) as found:
        yield found


@pytest.fixture
def proxied(database: str, between: TcpProxy) -> str:
    return database.replace(f":{urlsplit(database).port}/", f":{between.port}/")


@pytest.fixture
def server(proxied: str, tmp_path: Path) -> Iterator[services.Service]:
    """A server from which Prefect alone drops events at the first failure."""
    with services.prefect_server(
        tmp_path,
        program=services.OWN_SERVER,
        background_services=True,
        PREFECT_API_DATABASE_CONNECTION_URL=proxied,
        PREFECT_SERVER_SERVICES_EVENT_PERSISTER_MAX_FLUSH_RETRIES="1",
        PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL="0.2",
    ) as found:
        yield found


def event(name: str, resource: str, **content: Any) -> dict[str, Any]:
    return {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": name,
        "resource": {"prefect.resource.id": resource, "prefect.orchestration": "client"},
        **content,
    }


def completed(task_run: UUID, flow_run: UUID) -> dict[str, Any]:
    """The event by which a flow's process reports the state of one of its tasks."""
    related = {"prefect.resource.id": f"prefect.flow-run.{flow_run}"}
    return event(
        "prefect.task-run.Completed",
        f"prefect.task-run.{task_run}",
        related=[{**related, "prefect.resource.role": "flow-run"}],
        payload={
            "validated_state": {"type": "COMPLETED", "name": "Completed"},
            "task_run": {"name": "counts", "task_key": "counts", "dynamic_key": "0"},
        },
    )


def test_nothing_that_arrives_during_an_outage_is_lost(
    server: services.Service, between: TcpProxy
) -> None:
    api = Api(server.url)
    run, task_run = api.new_run(), uuid4()
    flow = api.post("/flows/", name="follows")["id"]
    deployment = api.post("/deployments/", name="follows", flow_id=flow)["id"]
    action = {"type": "run-deployment", "source": "selected", "deployment_id": deployment}
    action |= {"parameters": {"cause": "{{ event.resource.id }}"}}
    trigger = {"type": "event", "posture": "Reactive", "expect": ["arrived"]}
    trigger |= {"threshold": 1, "within": 0}
    api.post("/automations/", name="follows", trigger=trigger, actions=[action])

    def causes() -> list[str]:
        found = api.post("/flow_runs/filter", deployments={"id": {"any_": [deployment]}})
        return [each["parameters"]["cause"] for each in found]

    def reacts() -> bool:
        """Whether the service has learned of the automation."""
        api.post_list("/events", [event("arrived", "before")])
        return "before" in causes()

    wait_until(reacts)
    arrived = event("arrived", "meanwhile")
    between.refuse()
    try:
        api.post_list("/events", [arrived, completed(task_run, run)])
        wait_until(lambda: all(words in server.log.read_text() for words in WAITING))
    finally:
        between.listen()

    def stored() -> list[str]:
        within = {"event": {"name": ["arrived"]}, "resource": {"id": ["meanwhile"]}}
        return [each["id"] for each in api.post("/events/filter", filter=within)["events"]]

    wait_until(lambda: "meanwhile" in causes())
    assert causes().count("meanwhile") == 1
    wait_until(lambda: stored() == [arrived["id"]])
    wait_until(lambda: api.post("/task_runs/filter", task_runs={"id": {"any_": [str(task_run)]}}))
    assert api.get(f"/task_runs/{task_run}")["state_type"] == "COMPLETED"


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    """The attempts of `unavailable`, as in a process that has met no outage yet."""
    monkeypatch.setattr(outages._outage, "_began", None)
    found: list[None] = []
    yield found
    outages._stopping.clear()


def unavailable(attempts: list[None]) -> Any:
    """What waits for a database that is never available."""

    async def store() -> None:
        attempts.append(None)
        raise RedisConnectionError

    return outages.outlast("It waits for", store)


async def test_nothing_waits_in_a_service_that_is_stopped(attempts: list[None]) -> None:
    """It stores what it has at its end, for which Kubernetes gives it 30 seconds."""

    class Stopped:
        async def stop(self) -> None:
            with pytest.raises(RedisConnectionError):
                await unavailable(attempts)()

    outages._give_up_at_stop(Stopped)
    await Stopped().stop()
    assert len(attempts) == 1


async def test_an_outage_that_is_too_long_is_not_waited_for_again(
    attempts: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "PATIENCE_SECONDS", 0)
    for _ in range(2):
        with pytest.raises(RedisConnectionError):
            await unavailable(attempts)()
    assert len(attempts) == 2


async def test_an_action_begins_when_the_database_is_available(
    proxied: str, between: TcpProxy
) -> None:
    attempted = asyncio.Event()

    async def has_happened(id_: UUID) -> bool:
        try:
            return await outages._action_has_already_happened(id_)
        finally:
            attempted.set()

    between.refuse()
    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: proxied}):
        asked = asyncio.create_task(outages.outlast("An action waits for", has_happened)(uuid4()))
        try:
            await attempted.wait()
        finally:
            between.listen()
        try:
            assert await asked is False
        finally:
            await (await provide_database_interface().engine()).dispose()


@pytest.fixture
async def engine(database: str) -> AsyncEngine:
    return create_async_engine(database, pool_size=1)


async def failure(engine: AsyncEngine, *statements: str) -> Exception:
    """Return the error of the last of these statements."""
    async with engine.connect() as connection:
        for statement in statements[:-1]:
            await connection.execute(sa.text(statement))
        with pytest.raises(sa.exc.DBAPIError) as raised:
            await connection.execute(sa.text(statements[-1]))
        return raised.value


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param(["SELECT pg_terminate_backend(pg_backend_pid())"], id="restarts"),
        pytest.param(
            ["SET default_transaction_read_only = on", "COMMIT", "CREATE TABLE any_ (one int)"],
            id="read-only",
        ),
    ],
)
async def test_an_outage_will_pass(engine: AsyncEngine, statements: list[str]) -> None:
    assert outages.will_pass(await failure(engine, *statements))


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("SELECT CAST('one' AS integer)", id="content"),
        pytest.param("SELECT none FROM none", id="statement"),
        pytest.param("SET statement_timeout = 1; SELECT pg_sleep(5)", id="too slow"),
    ],
)
async def test_what_the_database_refuses_is_refused_again(
    engine: AsyncEngine, statement: str
) -> None:
    assert not outages.will_pass(await failure(engine, statement))


async def test_a_transaction_that_an_outage_ended_will_pass(engine: AsyncEngine) -> None:
    """As Prefect does, which commits in `finally`."""
    async with AsyncSession(engine) as session:
        with pytest.raises(sa.exc.PendingRollbackError) as raised:
            try:
                await session.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
            finally:
                await session.commit()
    assert outages.will_pass(raised.value)


async def test_a_value_that_the_driver_refuses_is_refused_again(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        with pytest.raises(sa.exc.DBAPIError) as raised:
            await connection.execute(sa.text("SELECT CAST(:value AS integer)"), {"value": "one"})
    assert not outages.will_pass(raised.value)


@pytest.mark.parametrize(
    ("statements", "passes"),
    [
        pytest.param(["PRAGMA max_page_count = 1", "CREATE TABLE other (one)"], True, id="full"),
        pytest.param(["SELECT none FROM none"], False, id="statement"),
    ],
)
async def test_sqlite_tells_an_outage_from_an_error(
    tmp_path: Path, statements: list[str], passes: bool
) -> None:
    path = tmp_path / "any.db"
    await anyio.Path(path).touch()
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    error = await failure(engine, "CREATE TABLE one (one)", *statements)
    assert outages.will_pass(error) is passes
    await engine.dispose()
