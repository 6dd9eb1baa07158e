"""The engine for a DuckDB file."""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random

from prefect_hamilton.warehouse import _sql
from prefect_hamilton.warehouse._errors import WarehouseError
from prefect_hamilton.warehouse._frames import (
    READ_ROWS,
    Wanted,
    arrow_table,
    read_schema,
    wanted_of,
)
from prefect_hamilton.warehouse._tables import TableSpec, Target

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

WRITES = "writes"


@contextmanager
def connect(
    file: Path, lock_timeout: float, on_wait: Callable[[str], None] | None
) -> Iterator["DuckDBWarehouse"]:
    """Open the file, as `prefect_hamilton.warehouse.connect` does."""
    import duckdb

    def is_locked(error: BaseException) -> bool:
        return isinstance(error, duckdb.IOException) and "lock on file" in str(error)

    def tell(state: RetryCallState) -> None:
        if on_wait and state.attempt_number == 1 and state.outcome:
            holder = _lock_holder(str(state.outcome.exception()))
            on_wait(f"Waiting for {file}, in use by another process ({holder})")

    waiting = Retrying(
        retry=retry_if_exception(is_locked),
        wait=wait_random(0.05, 0.25),
        stop=stop_after_delay(lock_timeout),
        before_sleep=tell,
        reraise=True,
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        connection = waiting(duckdb.connect, str(file))
    except (duckdb.Error, OSError) as error:
        if is_locked(error):
            raise WarehouseError(
                f"{file} has been in use by another process for {lock_timeout:.0f} s "
                f"({_lock_holder(str(error))}): close it there and run again"
            ) from None
        reason = str(error).splitlines()[0]
        raise WarehouseError(f"Cannot open the DuckDB file {file}: {reason}") from None
    with connection:
        yield DuckDBWarehouse(connection, lock_timeout)


def _lock_holder(message: str) -> str:
    found = re.search(r"PID (\d+)", message)
    return f"process {found.group(1)}" if found else "holder unknown"


class DuckDBWarehouse:
    """A DuckDB file, held by this process while open."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection", lock_timeout: float) -> None:
        self._connection = connection
        self._lock_timeout = lock_timeout

    def prepare(self, target: Target, specs: Sequence[TableSpec]) -> None:
        """Create the schema and the tables that are not there yet."""
        import duckdb

        with _process_lock(WRITES, self._lock_timeout):
            try:
                for statement in _sql.create_statements(target, specs):
                    self._connection.execute(statement)
            except (duckdb.BinderException, duckdb.CatalogException) as error:
                raise _sql.cannot_create(target, error) from None
            for spec in specs:
                try:
                    self._connection.execute(_sql.trial_statement(target, spec))
                except (duckdb.BinderException, duckdb.CatalogException):
                    raise _sql.conflict(target, spec) from None

    def upsert(self, target: Target, rows: Sequence[tuple[TableSpec, "pd.DataFrame"]]) -> None:
        """Insert rows, or replace those with the same key; several tables in one transaction."""
        # DuckDB refuses the second of two threads that write one row, instead of letting it wait.
        with _process_lock(WRITES, self._lock_timeout):
            self._upsert_once(target, rows)

    def _upsert_once(
        self, target: Target, rows: Sequence[tuple[TableSpec, "pd.DataFrame"]]
    ) -> None:
        import duckdb

        self._connection.begin()
        try:
            for spec, frame in rows:
                self._connection.register("batch", arrow_table(spec, frame))
                source = f"SELECT {_sql.names(spec.columns)} FROM batch"  # noqa: S608
                self._connection.execute(_sql.upsert_statement(target, spec, source))
                self._connection.unregister("batch")
            self._connection.commit()
        except BaseException:
            # A failed commit has rolled back by itself.
            with suppress(duckdb.TransactionException):
                self._connection.rollback()
            raise

    def read(
        self, query: str, parameters: Sequence[Any] = (), wanted: Wanted | None = None
    ) -> "pd.DataFrame":
        """Return what a query gives; `?` stands for a parameter."""
        import pyarrow as pa

        found = self._connection.sql(query, params=list(parameters)).to_arrow_reader(READ_ROWS)
        schema = read_schema(found.schema)
        tables = (pa.Table.from_batches([batch]).cast(schema) for batch in found)
        return wanted_of(tables, schema, wanted)

    def has_table(self, target: Target, spec: TableSpec) -> bool:
        """Tell whether a table is there."""
        return _sql.has_table(self.read, target, spec)

    def exclusively(self, purpose: str) -> AbstractContextManager[object]:
        """Keep other threads waiting; other processes do while the file is open."""
        return _process_lock(purpose, self._lock_timeout)


@contextmanager
def _process_lock(purpose: str, timeout: float) -> Iterator[None]:
    """Keep this process's other threads with the same purpose waiting until the block ends."""
    lock = _thread_lock(purpose)
    if not lock.acquire(timeout=timeout):
        raise WarehouseError(
            f"Another thread of this process has held the warehouse's lock for {purpose} for "
            f"{timeout:.0f} s: run again when it has ended"
        )
    try:
        yield
    finally:
        lock.release()


@cache
def _thread_lock(purpose: str) -> threading.Lock:
    return threading.Lock()
