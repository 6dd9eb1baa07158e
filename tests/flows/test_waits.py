"""Every wait for a lock or a slot is bounded and logged, and its message names the holder."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from uuid import uuid4

import psycopg
import pytest
from prefect import flow, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.states import Running

from flows import write_slot
from flows.data_pipeline import enterprise_data_pipeline
from flows.tables import METRICS
from prefect_hamilton import warehouse
from prefect_hamilton.warehouse import WarehouseError
from tests import services
from tests.flows.test_warehouse import TARGET, rows, stored

UPDATE = "UPDATE prod.metrics SET value = 7"


@pytest.fixture
def loaded(postgres: str) -> str:
    """A PostgreSQL warehouse with three rows; returns the URL."""
    url = services.create_database(postgres, "warehouse")
    with warehouse.connect(url) as opened:
        opened.prepare(TARGET, [METRICS])
        opened.upsert(TARGET, [(METRICS, rows(3))])
    return url


@pytest.fixture
def holder(loaded: str) -> Iterator["psycopg.Connection[tuple[object, ...]]"]:
    """A session that has changed all rows in a transaction that it does not end."""
    connection = psycopg.connect(loaded, application_name="other program")
    connection.execute(UPDATE)
    yield connection
    connection.close()


def test_a_row_that_stays_locked_fails_and_names_the_holder(
    loaded: str, holder: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    messages: list[str] = []
    with (
        pytest.raises(WarehouseError) as error,
        warehouse.connect(loaded, lock_timeout=4, on_wait=messages.append) as connection,
    ):
        connection.upsert(TARGET, [(METRICS, rows(3, 2.0))])
    who = (
        f"held by process {holder.info.backend_pid} "
        "(user loader, application other program, idle in transaction)"
    )
    address = warehouse.describe(loaded)
    assert messages == [f"Waiting for a lock in {address}, {who}"]
    message = f"Gave up waiting for a lock in {address}, {who}: wait until "
    assert str(error.value).startswith(message)
    holder.rollback()
    assert {value for _, value in stored(loaded)} == {1.0}


def test_a_row_that_is_unlocked_while_a_run_waits_is_written(
    loaded: str, holder: "psycopg.Connection[tuple[object, ...]]"
) -> None:
    with warehouse.connect(loaded, on_wait=lambda _: holder.rollback()) as connection:
        connection.upsert(TARGET, [(METRICS, rows(3, 2.0))])
    assert {value for _, value in stored(loaded)} == {2.0}


def test_rows_that_another_session_inserts_meanwhile_are_replaced(loaded: str) -> None:
    """They are new when the batch is looked up, and are there when it is written."""
    rest = rows(5).iloc[3:]
    with psycopg.connect(loaded) as other:
        other.execute("INSERT INTO prod.metrics (metric, time) VALUES ('wind', '2024-01-04')")
        with warehouse.connect(loaded, on_wait=lambda _: other.commit()) as connection:
            connection.upsert(TARGET, [(METRICS, rest.assign(value=2.0))])
    assert [value for _, value in stored(loaded)] == [1.0, 1.0, 1.0, 2.0, 2.0]


def test_a_lock_held_by_another_session_fails_after_the_timeout_and_names_the_holder(
    loaded: str,
) -> None:
    with warehouse.connect(loaded) as first, first.exclusively("report"):
        messages: list[str] = []
        with (
            pytest.raises(WarehouseError, match=r"held by process \d+ .*prefect-hamilton"),
            warehouse.connect(loaded, lock_timeout=4, on_wait=messages.append) as second,
            second.exclusively("report"),
        ):
            pass
        assert len(messages) == 1
    with warehouse.connect(loaded) as third, third.exclusively("report"):
        pass


def test_two_threads_of_one_duckdb_file_wait_for_each_other(duckdb_warehouse: str) -> None:
    errors: list[str] = []

    def report() -> None:
        try:
            with (
                warehouse.connect(duckdb_warehouse, lock_timeout=0.1) as second,
                second.exclusively("report"),
            ):
                pass
        except WarehouseError as error:
            errors.append(str(error))

    with warehouse.connect(duckdb_warehouse) as first, first.exclusively("report"):
        thread = threading.Thread(target=report)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert "Another thread of this process" in errors[0]
    report()
    assert len(errors) == 1


def test_a_session_ended_by_the_server_is_reported_in_one_sentence(loaded: str) -> None:
    with (
        pytest.raises(
            WarehouseError, match=r"/warehouse failed: .*terminating connection"
        ) as error,
        warehouse.connect(loaded) as connection,
        connection.exclusively("report"),
        psycopg.connect(loaded, autocommit=True) as other,
    ):
        pid = connection.read("SELECT pg_backend_pid() AS pid")["pid"][0]
        other.execute("SELECT pg_terminate_backend(%s)", (int(pid),))
        connection.upsert(TARGET, [(METRICS, rows(3))])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("query", "lock", "idle"),
    [
        ("", "2min", "1min"),
        ("?options=-c%20lock_timeout%3D7s", "7s", "1min"),
        ("?options=-c%20idle_in_transaction_session_timeout%3D0", "2min", "0"),
    ],
)
def test_a_session_is_bounded_unless_the_url_says_otherwise(
    loaded: str, query: str, lock: str, idle: str
) -> None:
    with warehouse.connect(loaded + query) as connection:
        shown = connection.read(
            "SELECT current_setting('lock_timeout') AS lock, "
            "current_setting('idle_in_transaction_session_timeout') AS idle"
        )
    assert shown.to_dict("records") == [{"lock": lock, "idle": idle}]


@flow(validate_parameters=False)
def writes(messages: list[str], on_wait: ExitStack | None) -> None:
    """Open the warehouse for writing as the pipeline does; on the first wait, close `on_wait`."""

    def tell(message: str) -> None:
        messages.append(message)
        if on_wait:
            on_wait.close()

    with write_slot.writing(enterprise_data_pipeline.name, tell) as connection:
        connection.prepare(TARGET, [METRICS])


@pytest.fixture
def slot(prefect_api: str) -> Iterator[ExitStack]:
    """The only slot to write, held until the stack is closed."""
    name = write_slot.WRITE_LIMIT
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        try:
            with ExitStack() as held:
                held.enter_context(concurrency(name, strict=True, lease_duration=600))
                yield held
        finally:
            client.delete_global_concurrency_limit_by_name(name)


@pytest.mark.services
def test_a_slot_that_stays_taken_fails_and_names_possible_holders(
    slot: ExitStack, duckdb_warehouse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_slot, "SLOT_NOTICE", 0.1)
    monkeypatch.setattr(write_slot, "SLOT_TIMEOUT", 5)
    name = f"writer-{uuid4()}"
    with get_client(sync_client=True) as client:
        other = client.create_flow_run(enterprise_data_pipeline, name=name, state=Running())
        try:
            messages: list[str] = []
            with pytest.raises(WarehouseError) as error:
                writes(messages, None)
        finally:
            client.delete_flow_run(other.id)
    limit = "a slot of the global concurrency limit warehouse-writes"
    assert len(messages) == 1
    assert messages[0].startswith(f"Waiting for {limit}; other runs of this flow are running: ")
    assert str(error.value).startswith(f"Waited 5 s for {limit}; other runs")
    assert name in messages[0]
    assert name in str(error.value)


@pytest.mark.services
def test_a_load_takes_a_slot_that_becomes_free(
    slot: ExitStack, duckdb_warehouse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_slot, "SLOT_NOTICE", 0.1)
    messages: list[str] = []
    writes(messages, slot)
    assert len(messages) == 1
    with warehouse.connect(duckdb_warehouse) as connection:
        assert connection.has_table(TARGET, METRICS)
