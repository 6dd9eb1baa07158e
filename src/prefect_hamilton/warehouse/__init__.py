"""A warehouse for flows: a DuckDB file or a PostgreSQL database, written by idempotent upserts.

Its address comes from `WAREHOUSE_URL`, or else from the Prefect Secret block `warehouse-url`. In
the local profile, it defaults to a DuckDB file in the state folder. Both engines take the same SQL
and read and write Arrow tables; they differ in how a batch of rows is written and in how one writer
waits for another.

A flow describes its tables as `TableSpec` and names a `Target`, `catalog.schema.table`. Beside the
target table stand its companions: the target's name with the suffix of another spec.

    SALES = TableSpec("", {"day": "TIMESTAMP", "amount": "DOUBLE PRECISION"}, key=("day",))

    with warehouse.connect(warehouse.warehouse_url()) as connection:
        connection.prepare(target, [SALES])
        connection.upsert(target, [(SALES, frame)])

Needs the extra `warehouse` of this package: duckdb, pandas, psycopg and pyarrow, which are imported
when a warehouse is opened.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prefect_hamilton.warehouse._errors import TableConflictError, WarehouseError
from prefect_hamilton.warehouse._frames import Wanted
from prefect_hamilton.warehouse._tables import TableSpec, Target, TargetTable
from prefect_hamilton.warehouse._url import (
    STATE_VARIABLE,
    URL_BLOCK,
    URL_VARIABLE,
    check,
    describe,
    parse,
    warehouse_url,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "LOCK_TIMEOUT",
    "STATE_VARIABLE",
    "URL_BLOCK",
    "URL_VARIABLE",
    "TableConflictError",
    "TableSpec",
    "Target",
    "TargetTable",
    "Wanted",
    "Warehouse",
    "WarehouseError",
    "check",
    "connect",
    "describe",
    "warehouse_url",
]

# Seconds that a writer waits for another one to release the DuckDB file or its rows.
LOCK_TIMEOUT = 120.0


class Warehouse(Protocol):
    """An open connection. Every method is one transaction: all of it happens, or nothing."""

    def prepare(self, target: Target, specs: Sequence[TableSpec]) -> None:
        """Create the schema and the tables that are not there yet.

        Raises:
            TableConflictError: The name is taken by something with other columns, or reserved.

        """

    def upsert(self, target: Target, rows: Sequence[tuple[TableSpec, "pd.DataFrame"]]) -> None:
        """Insert rows, or replace those with the same key; several tables in one transaction.

        Each table at most once. Columns that a frame has beyond the table's are left out.
        """

    def read(
        self, query: str, parameters: Sequence[Any] = (), wanted: "Wanted | None" = None
    ) -> "pd.DataFrame":
        """Return the result of a query; `?` stands for a parameter.

        `wanted` is called with some rows at a time and tells which of them to return; the others
        are not held in memory.

        Columns are str, float64, int64, bool and datetime64[us] on both engines, also when no
        value or no row is there; with nulls, int64 becomes float64 and bool becomes object. Sums of
        whole numbers are float64 in DuckDB, and in PostgreSQL those of BIGINT.
        """

    def has_table(self, target: Target, spec: TableSpec) -> bool:
        """Tell whether a table is there."""

    def exclusively(self, purpose: str) -> AbstractContextManager[object]:
        """Keep every other session with the same purpose waiting until the block ends."""


@contextmanager
def connect(
    url: str,
    *,
    lock_timeout: float = LOCK_TIMEOUT,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[Warehouse]:
    """Open the warehouse; a DuckDB file belongs to one process at a time, so wait for it.

    `on_wait` is called with a sentence when there is something to wait for: the DuckDB file, or a
    lock in PostgreSQL, then from another thread.

    Raises:
        WarehouseError: It cannot be opened, or the file or a lock stays in use for `lock_timeout`
        s. A PostgreSQL URL's own `options=-c lock_timeout=...` comes first.

    """
    # The engines' libraries are imported for the engine that is used.
    where = parse(url)
    if isinstance(where, Path):
        from prefect_hamilton.warehouse import _duckdb

        with _duckdb.connect(where, lock_timeout, on_wait) as duck:
            yield duck
    else:
        from prefect_hamilton.warehouse import _postgres

        with _postgres.connect(where, lock_timeout, on_wait) as postgres:
            yield postgres
