"""The warehouse: a DuckDB file or a PostgreSQL database, written by idempotent upserts.

Where it is comes from `WAREHOUSE_URL`, else from the Prefect Secret block `warehouse-url`, else it
is the DuckDB file of the local profile. Both engines take the same SQL; what differs is how a
batch of rows gets there and how one writer waits for another.

Beside a target table stand its companions, named after it: `<table>_monthly` (one row a metric and
month), `<table>_quarantine` (rejected records and why) and `<table>_loads` (which flow run loaded
what). Times are UTC, without a zone.
"""

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random,
)

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import psycopg

URL_VARIABLE = "WAREHOUSE_URL"
URL_BLOCK = "warehouse-url"
DEFAULT_TARGET = "warehouse.prod.metrics"

# Three lowercase names: then quoting and the engines' different case rules change nothing.
# PostgreSQL cuts names at 63 bytes: 48 leaves room for the companions' endings.
_NAME = "[a-z_][a-z0-9_]{0,47}"
_TARGET = rf"{_NAME}\.{_NAME}\.{_NAME}"

# Seconds that a writer waits for another one to let go of the DuckDB file or of its rows.
LOCK_TIMEOUT = 120.0
CONNECT_TIMEOUT = 10

WRITES = "writes"


class WarehouseError(Exception):
    """The warehouse cannot be used as configured; one line with the cause and the way out."""


@dataclass(frozen=True)
class TableSpec:
    """Columns (name to SQL type both engines know), key, and the ending of the table's name."""

    suffix: str
    columns: Mapping[str, str]
    key: tuple[str, ...]


def _spec(suffix: str, key: tuple[str, ...], columns: dict[str, str]) -> TableSpec:
    return TableSpec(suffix=suffix, columns=MappingProxyType(columns), key=key)


METRICS = _spec(
    "",
    ("metric", "time"),
    {
        "metric": "TEXT",
        "time": "TIMESTAMP",
        "value": "DOUBLE PRECISION",
        "unit": "TEXT",
        "station": "TEXT",
        "rolling_mean_7d": "DOUBLE PRECISION",
        "rolling_mean_30d": "DOUBLE PRECISION",
        "rolling_std_30d": "DOUBLE PRECISION",
        "z_score": "DOUBLE PRECISION",
        "is_anomaly": "BOOLEAN",
        "flow_run_id": "TEXT",
    },
)
MONTHLY = _spec(
    "_monthly",
    ("metric", "month"),
    {
        "metric": "TEXT",
        "month": "TIMESTAMP",
        "unit": "TEXT",
        "aggregation": "TEXT",
        "value": "DOUBLE PRECISION",
        "minimum": "DOUBLE PRECISION",
        "maximum": "DOUBLE PRECISION",
        "observations": "BIGINT",
        "anomalies": "BIGINT",
        "change": "DOUBLE PRECISION",
        "change_percent": "DOUBLE PRECISION",
        "flow_run_id": "TEXT",
    },
)
QUARANTINE = _spec(
    "_quarantine",
    ("record_id",),
    {
        "record_id": "TEXT",
        "source": "TEXT",
        "record_number": "BIGINT",
        "raw_time": "TEXT",
        "raw_metric": "TEXT",
        "raw_value": "TEXT",
        "reasons": "TEXT",
        "flow_run_id": "TEXT",
        "rejected_at": "TIMESTAMP",
    },
)
LOADS = _spec(
    "_loads",
    ("flow_run_id",),
    {
        "flow_run_id": "TEXT",
        "flow_run_name": "TEXT",
        "source": "TEXT",
        "status": "TEXT",
        "started_at": "TIMESTAMP",
        "finished_at": "TIMESTAMP",
        "rows_read": "BIGINT",
        "rows_rejected": "BIGINT",
        "rows_written": "BIGINT",
        "months_written": "BIGINT",
        "metrics": "TEXT",
        "first_time": "TIMESTAMP",
        "last_time": "TIMESTAMP",
        "quality": "TEXT",
    },
)
REPORTS = _spec(
    "_reports",
    ("upstream_flow_run_id",),
    {
        "upstream_flow_run_id": "TEXT",
        "flow_run_id": "TEXT",
        "reported_at": "TIMESTAMP",
    },
)


@dataclass(frozen=True)
class Target:
    """A target table's three parts; `name` gives the quoted name of it or of a companion."""

    catalog: str
    schema: str
    table: str

    @classmethod
    def parse(cls, target_table: str) -> "Target":
        """Take `catalog.schema.table` apart; raises WarehouseError when it is not that."""
        if not re.fullmatch(_TARGET, target_table):
            raise WarehouseError(
                f"target_table {target_table!r} is not catalog.schema.table in lowercase letters, "
                f"digits and underscores, like {DEFAULT_TARGET}"
            )
        return cls(*target_table.split("."))

    def name(self, spec: TableSpec) -> str:
        """Return the quoted name for SQL. The parts hold no quotes: `parse` saw to it."""
        return f'"{self.catalog}"."{self.schema}"."{self.table}{spec.suffix}"'

    def shown(self, spec: TableSpec) -> str:
        """Return the name as people write it."""
        return f"{self.catalog}.{self.schema}.{self.table}{spec.suffix}"


def _valid_target(target_table: str) -> str:
    try:
        Target.parse(target_table)
    except WarehouseError as error:
        raise ValueError(str(error)) from None
    return target_table


# The pattern is for the run form and the API; the validator says the same in words.
TargetTable = Annotated[
    str, AfterValidator(_valid_target), Field(json_schema_extra={"pattern": f"^{_TARGET}$"})
]


class Warehouse(Protocol):
    """An open connection. Every method is one transaction: all of it happens, or nothing."""

    def prepare(self, target: Target, specs: Sequence[TableSpec]) -> None:
        """Create the schema and the tables that are not there yet."""

    def upsert(self, target: Target, rows: Sequence[tuple[TableSpec, "pd.DataFrame"]]) -> None:
        """Insert rows, or replace those with the same key; several tables in one transaction."""

    def read(self, query: str, parameters: Sequence[Any] = ()) -> "pd.DataFrame":
        """Return what a query gives; `?` stands for a parameter."""

    def has_table(self, target: Target, spec: TableSpec) -> bool:
        """Tell whether a table is there."""

    def exclusively(self, purpose: str) -> AbstractContextManager[object]:
        """Keep every other session with the same purpose waiting until the block ends."""


def warehouse_url() -> str:
    """Return where the warehouse is. It may hold a password: never log it, see `describe`."""
    if url := os.environ.get(URL_VARIABLE):
        return url
    from prefect.blocks.system import Secret

    try:
        block = Secret.load(URL_BLOCK)
    except ValueError:  # there is no such block
        return f"duckdb:///{_default_file()}"
    return str(cast("Secret[Any]", block).get())


def _default_file() -> Path:
    root = Path(__file__).resolve().parent.parent
    return Path(os.environ.get("PREFECT_HAMILTON_STATE") or root / ".state") / "warehouse.duckdb"


def _duckdb_file(url: str) -> Path:
    """Return the file of a `duckdb:` URL; always absolute, for a run may start in any folder."""
    return Path("/" + unquote(urlsplit(url).path).lstrip("/"))


def describe(url: str) -> str:
    """Return the warehouse's address without credentials."""
    parts = urlsplit(url)
    if parts.scheme == "duckdb":
        return f"duckdb:///{_duckdb_file(url)}"
    port = f":{parts.port}" if parts.port else ""
    return f"postgresql://{parts.hostname or 'localhost'}{port}{parts.path}"


def check(url: str, target: Target) -> None:
    """Check, without connecting, that a target's catalog is the warehouse's database.

    Raises:
        WarehouseError: It is not, or the URL is of another kind.

    """
    parts = urlsplit(url)
    if parts.scheme == "duckdb":
        database = _duckdb_file(url).stem
        what = f"the DuckDB file {_duckdb_file(url).name}"
    elif parts.scheme in ("postgresql", "postgres"):
        database = unquote(parts.path.lstrip("/"))
        what = f"the PostgreSQL database {database or '(none named)'}"
    else:
        raise WarehouseError(
            f"The warehouse's URL ({URL_VARIABLE} or Secret block {URL_BLOCK}) is neither "
            "duckdb:////path/warehouse.duckdb nor postgresql://user:password@host:5432/warehouse"
        )
    if database != target.catalog:
        raise WarehouseError(
            f"target_table {target.shown(METRICS)} is in catalog {target.catalog}, but the "
            f"warehouse is {what}: write {database or DEFAULT_TARGET.split('.')[0]}."
            f"{target.schema}.{target.table}, or set {URL_VARIABLE}"
        )


@contextmanager
def connect(
    url: str,
    *,
    lock_timeout: float = LOCK_TIMEOUT,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[Warehouse]:
    """Open the warehouse; a DuckDB file belongs to one process at a time, so wait for it.

    `on_wait` is told once, in a sentence, when there is something to wait for.

    Raises:
        WarehouseError: It cannot be opened, or another process holds it for `lock_timeout` s.

    """
    if urlsplit(url).scheme == "duckdb":
        with _connect_duckdb(_duckdb_file(url), lock_timeout, on_wait) as duck:
            yield DuckDBWarehouse(duck)
    else:
        with _connect_postgres(url) as postgres:
            yield PostgresWarehouse(postgres)


@contextmanager
def _connect_duckdb(
    file: Path, lock_timeout: float, on_wait: Callable[[str], None] | None
) -> Iterator["duckdb.DuckDBPyConnection"]:
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
                f"{file} is in use by another process since {lock_timeout:.0f} s "
                f"({_lock_holder(str(error))}): close it there and run again"
            ) from None
        reason = str(error).splitlines()[0]
        raise WarehouseError(f"Cannot open the DuckDB file {file}: {reason}") from None
    with connection:
        yield connection


def _lock_holder(message: str) -> str:
    found = re.search(r"PID (\d+)", message)
    return f"process {found.group(1)}" if found else "holder unknown"


@contextmanager
def _connect_postgres(url: str) -> Iterator["psycopg.Connection[Any]"]:
    import psycopg

    try:
        connection = psycopg.connect(
            url,
            connect_timeout=CONNECT_TIMEOUT,
            application_name="prefect-hamilton",
            autocommit=True,
        )
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise WarehouseError(f"Cannot connect to {describe(url)}: {reason}") from None
    with connection:
        yield connection


def _create_statements(target: Target, specs: Sequence[TableSpec]) -> list[str]:
    # PostgreSQL takes no catalog here; the connection is to the right one in any case.
    statements = [f'CREATE SCHEMA IF NOT EXISTS "{target.schema}"']
    for spec in specs:
        columns = [
            f'"{name}" {kind}{" NOT NULL" if name in spec.key else ""}'
            for name, kind in spec.columns.items()
        ]
        key = f"PRIMARY KEY ({_names(spec.key)})"
        statements.append(
            f"CREATE TABLE IF NOT EXISTS {target.name(spec)} ({', '.join([*columns, key])})"
        )
    return statements


def _upsert_statement(target: Target, spec: TableSpec, source: str) -> str:
    updates = ", ".join(
        f'"{name}" = excluded."{name}"' for name in spec.columns if name not in spec.key
    )
    return (
        f"INSERT INTO {target.name(spec)} ({_names(spec.columns)}) {source} "
        f"ON CONFLICT ({_names(spec.key)}) DO UPDATE SET {updates}"
    )


def _names(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


class DuckDBWarehouse:
    """A DuckDB file, held by this process while open."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection") -> None:
        self._connection = connection

    def prepare(self, target: Target, specs: Sequence[TableSpec]) -> None:
        """Create the schema and the tables that are not there yet."""
        with _process_lock(WRITES):
            for statement in _create_statements(target, specs):
                self._connection.execute(statement)

    def upsert(self, target: Target, rows: Sequence[tuple[TableSpec, "pd.DataFrame"]]) -> None:
        """Insert rows, or replace those with the same key; several tables in one transaction."""
        # DuckDB refuses the second of two threads that write one row, instead of letting it wait.
        with _process_lock(WRITES):
            self._upsert_once(target, rows)

    def _upsert_once(
        self, target: Target, rows: Sequence[tuple[TableSpec, "pd.DataFrame"]]
    ) -> None:
        import duckdb

        self._connection.begin()
        try:
            for spec, frame in rows:
                self._connection.register("batch", frame[list(spec.columns)])
                source = f"SELECT {_names(spec.columns)} FROM batch"  # noqa: S608
                self._connection.execute(_upsert_statement(target, spec, source))
                self._connection.unregister("batch")
            self._connection.commit()
        except BaseException:
            # A failed commit has rolled back by itself.
            with suppress(duckdb.TransactionException):
                self._connection.rollback()
            raise

    def read(self, query: str, parameters: Sequence[Any] = ()) -> "pd.DataFrame":
        """Return what a query gives; `?` stands for a parameter."""
        frame: pd.DataFrame = self._connection.execute(query, list(parameters)).df()
        return frame

    def has_table(self, target: Target, spec: TableSpec) -> bool:
        """Tell whether a table is there."""
        return _has_table(self, target, spec)

    def exclusively(self, purpose: str) -> AbstractContextManager[object]:
        """Keep other threads waiting; other processes do while the file is open."""
        return _process_lock(purpose)


class PostgresWarehouse:
    """A PostgreSQL database; rows are locked while written, nothing else."""

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self._connection = connection

    def prepare(self, target: Target, specs: Sequence[TableSpec]) -> None:
        """Create the schema and the tables that are not there yet."""
        with self._connection.transaction(), self._connection.cursor() as cursor:
            # IF NOT EXISTS does not protect two sessions that create the same thing at once.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('prefect-hamilton-warehouse'))")
            for statement in _create_statements(target, specs):
                cursor.execute(statement.encode())

    def upsert(self, target: Target, rows: Sequence[tuple[TableSpec, "pd.DataFrame"]]) -> None:
        """Insert rows, or replace those with the same key; several tables in one transaction."""
        with self._connection.transaction(), self._connection.cursor() as cursor:
            for spec, frame in rows:
                source = f"VALUES ({', '.join(['%s'] * len(spec.columns))})"
                # In the order of the key, so that two loads never wait for each other's rows.
                ordered = frame[list(spec.columns)].sort_values(list(spec.key))
                values = ordered.astype("object").where(ordered.notna(), None)
                statement = _upsert_statement(target, spec, source)
                cursor.executemany(
                    statement.encode(), list(values.itertuples(index=False, name=None))
                )

    def read(self, query: str, parameters: Sequence[Any] = ()) -> "pd.DataFrame":
        """Return what a query gives; `?` stands for a parameter."""
        import pandas as pd

        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute(query.replace("?", "%s").encode(), list(parameters))
            columns = [column.name for column in cursor.description or []]
            return pd.DataFrame(cursor.fetchall(), columns=columns)

    def has_table(self, target: Target, spec: TableSpec) -> bool:
        """Tell whether a table is there."""
        return _has_table(self, target, spec)

    @contextmanager
    def exclusively(self, purpose: str) -> Iterator[None]:
        """Keep every other session with the same purpose waiting until the block ends."""
        self._connection.execute("SELECT pg_advisory_lock(hashtext(%s))", (purpose,))
        try:
            yield
        finally:
            self._connection.execute("SELECT pg_advisory_unlock(hashtext(%s))", (purpose,))


@cache
def _process_lock(purpose: str) -> threading.Lock:
    return threading.Lock()


def _has_table(warehouse: Warehouse, target: Target, spec: TableSpec) -> bool:
    found = warehouse.read(
        "SELECT 1 FROM information_schema.tables "
        "WHERE table_catalog = ? AND table_schema = ? AND table_name = ?",
        (target.catalog, target.schema, target.table + spec.suffix),
    )
    return not found.empty
