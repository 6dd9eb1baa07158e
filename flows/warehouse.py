"""The warehouse: a DuckDB file or a PostgreSQL database, written by idempotent upserts.

Where it is comes from `WAREHOUSE_URL`, else from the Prefect Secret block `warehouse-url`, else, in
the local profile, it is a DuckDB file in the state folder. Both engines take the same SQL and read
and write Arrow tables; what differs is how a batch of rows gets there and how one writer waits for
another.

Beside a target table stand its companions, named after it: `<table>_monthly` (one row a metric and
month), `<table>_quarantine` (rejected records and why) and `<table>_loads` (which flow run loaded
what). Times are UTC, without a zone.
"""

import io
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast
from urllib.parse import quote, unquote, urlsplit

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
    import numpy as np
    import pandas as pd
    import psycopg
    import pyarrow as pa

URL_VARIABLE = "WAREHOUSE_URL"
URL_BLOCK = "warehouse-url"
STATE_VARIABLE = "PREFECT_HAMILTON_STATE"
DEFAULT_TARGET = "warehouse.prod.metrics"

# Three lowercase names: then quoting and the engines' different case rules change nothing.
# PostgreSQL cuts names at 63 bytes: 48 leaves room for the companions' endings.
_NAME = "[a-z_][a-z0-9_]{0,47}"
_TARGET = rf"{_NAME}\.{_NAME}\.{_NAME}"

# Seconds that a writer waits for another one to let go of the DuckDB file or of its rows.
LOCK_TIMEOUT = 120.0
# Seconds after which PostgreSQL ends a transaction in which nothing happens: its client is frozen
# or gone. Shorter than LOCK_TIMEOUT, so that who waits for it goes on.
IDLE_TIMEOUT = 60.0
# Seconds between two looks at whom a statement waits for.
LOOK_SECONDS = 1.0

# What a URL does not say itself. A server that vanished is noticed within a minute.
_CONNECTION_DEFAULTS = {
    "application_name": "prefect-hamilton",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
# One @, before the first /: then libpq takes all of the password for the password. A further one,
# not percent-encoded, would make a part of it the host or the database, which are shown.
_POSTGRES_URL = r"postgres(ql)?://([^@/\0]*@)?[^@\0]*"

WRITES = "writes"


class WarehouseError(Exception):
    """The warehouse cannot be used as configured; one line with the cause and the way out."""


class TableConflictError(WarehouseError):
    """A table cannot be created or written as it has to be; waiting does not help."""


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


Wanted = Callable[["pd.DataFrame"], "np.ndarray"]


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
        """Return what a query gives; `?` stands for a parameter.

        `wanted` is called with some rows at a time and tells which of them to return; the others
        are not held in memory.

        Columns are str, float64, int64, bool and datetime64[us] on both engines, also when no
        value or no row is there; with nulls, int64 becomes float64 and bool becomes object.
        """

    def has_table(self, target: Target, spec: TableSpec) -> bool:
        """Tell whether a table is there."""

    def exclusively(self, purpose: str) -> AbstractContextManager[object]:
        """Keep every other session with the same purpose waiting until the block ends."""


def warehouse_url() -> str:
    """Return where the warehouse is. It may hold a password: never log it, see `describe`.

    Raises:
        WarehouseError: None is configured, or the block cannot be loaded.

    """
    if url := os.environ.get(URL_VARIABLE) or _saved_url():
        return url
    # Only where somebody keeps the folder: a pod's file would go with the pod, and its rows too.
    if state := os.environ.get(STATE_VARIABLE):
        return f"duckdb:///{Path(state).resolve() / 'warehouse.duckdb'}"
    raise WarehouseError(
        f"No warehouse: save the Secret block {URL_BLOCK} or set {URL_VARIABLE}, "
        "as postgresql://user:password@host:5432/warehouse"
    )


def _saved_url() -> str | None:
    """Return what the Secret block holds, None where there is no such block."""
    import httpx
    from prefect.blocks.system import Secret
    from prefect.exceptions import ObjectNotFound

    try:
        value = cast("Secret[Any]", Secret.load(URL_BLOCK)).get()
    except (ValueError, RuntimeError, httpx.HTTPError) as error:
        if isinstance(error.__cause__, ObjectNotFound):
            return None
        # Its own message may hold what the block holds.
        raise WarehouseError(
            f"The Secret block {URL_BLOCK} cannot be loaded ({type(error).__name__}): save it "
            f"again or set {URL_VARIABLE}"
        ) from None
    if not isinstance(value, str):
        raise WarehouseError(f"The Secret block {URL_BLOCK} does not hold a text: save it again")
    return value


def _parse(url: str) -> Path | dict[str, str]:
    """Return the file of a `duckdb:` URL, or the parameters of a `postgresql:` URL, as libpq does.

    The file is always absolute, for a run may start in any folder. Raises WarehouseError, without
    any part of the URL.
    """
    if url.startswith("duckdb:"):
        with suppress(ValueError):
            return Path("/" + unquote(urlsplit(url).path).lstrip("/"))
    elif url.startswith(("postgresql:", "postgres:")):
        return _parse_postgres(url)
    raise WarehouseError(
        f"The warehouse's URL ({URL_VARIABLE} or Secret block {URL_BLOCK}) is neither "
        "duckdb:////path/warehouse.duckdb nor postgresql://user:password@host:5432/warehouse"
    )


def _parse_postgres(url: str) -> dict[str, str]:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    # What libpq says of a mistake quotes the password: nothing of it is shown.
    with suppress(psycopg.Error, ValueError):
        parameters = {name: str(value) for name, value in conninfo_to_dict(url).items()}
        ports = parameters.get("port", "").split(",")
        if re.fullmatch(_POSTGRES_URL, url) and all(map(_is_port, ports)):
            return parameters
    raise WarehouseError(
        f"The warehouse's URL ({URL_VARIABLE} or Secret block {URL_BLOCK}) cannot be read as "
        "postgresql://user:password@host:5432/warehouse: percent-encode the password "
        "(% as %25, @ as %40, / as %2F)"
    )


def _is_port(text: str) -> bool:
    return not text or (text.isascii() and text.isdecimal() and 0 < int(text) < 65536)


def describe(url: str) -> str:
    """Return the warehouse's address without credentials. Raises WarehouseError as `check` does."""
    where = _parse(url)
    return f"duckdb:///{where}" if isinstance(where, Path) else _address(where)


def _address(parameters: Mapping[str, str]) -> str:
    """Return hosts, ports and database of a PostgreSQL connection, as a URL."""
    hosts = parameters.get("host", "localhost").split(",")
    ports = parameters.get("port", "").split(",")
    if len(ports) == 1:  # one port for all hosts
        ports *= len(hosts)
    addresses = [
        (f"[{host}]" if ":" in host else quote(host)) + (f":{port}" if port else "")
        for host, port in zip(hosts, ports, strict=False)
    ]
    return f"postgresql://{','.join(addresses)}/{quote(parameters.get('dbname', ''))}"


def check(url: str, target: Target) -> None:
    """Check, without connecting, that a target's catalog is the warehouse's database.

    Raises:
        WarehouseError: It is not, or the URL is of another kind or cannot be read.

    """
    where = _parse(url)
    if isinstance(where, Path):
        database = where.stem
        what = f"the DuckDB file {where.name}"
    else:
        database = where.get("dbname", "")
        what = f"the PostgreSQL database {database or '(none named)'}"
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

    `on_wait` is called with a sentence when there is something to wait for: the DuckDB file, or a
    lock in PostgreSQL, then from another thread.

    Raises:
        WarehouseError: It cannot be opened, or somebody holds the file or a lock for
            `lock_timeout` s. A PostgreSQL URL's own `options=-c lock_timeout=...` comes first.

    """
    where = _parse(url)
    if isinstance(where, Path):
        with _connect_duckdb(where, lock_timeout, on_wait) as duck:
            yield DuckDBWarehouse(duck)
    else:
        with _connect_postgres(where, lock_timeout, on_wait) as postgres:
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
                f"{file} has been in use by another process for {lock_timeout:.0f} s "
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
def _connect_postgres(
    parameters: Mapping[str, str], lock_timeout: float, on_wait: Callable[[str], None] | None
) -> Iterator["psycopg.Connection[Any]"]:
    import psycopg
    from psycopg.conninfo import make_conninfo

    address = _address(parameters)
    conninfo = make_conninfo(**{**_CONNECTION_DEFAULTS, **parameters})
    try:
        connection = psycopg.connect(conninfo, autocommit=True)
    except psycopg.Error as error:
        raise WarehouseError(f"Cannot connect to {address}: {_reason(error, parameters)}") from None
    interval = min(LOOK_SECONDS, lock_timeout / 4)
    with connection, _LockWatch(connection, conninfo, address, interval, on_wait) as watch:
        try:
            _bound_waits(connection, lock_timeout)
            yield connection
        except psycopg.errors.LockNotAvailable:
            raise WarehouseError(
                f"Gave up waiting for a lock in {address}, held by {watch.holder}: let that "
                "session end its transaction, or end it with pg_terminate_backend, and run again"
            ) from None
        except (
            psycopg.OperationalError,
            psycopg.errors.IdleInTransactionSessionTimeout,
        ) as error:
            raise WarehouseError(f"{address} failed: {_reason(error, parameters)}") from None


def _reason(error: "psycopg.Error", parameters: Mapping[str, str]) -> str:
    """Return what libpq or the server said, in one line, unless it holds the password."""
    reason = " ".join(str(error).split())
    if (password := parameters.get("password")) and password in reason:
        return f"{type(error).__name__} (its text holds the password): check host, port and user"
    return reason


def _bound_waits(connection: "psycopg.Connection[Any]", lock_timeout: float) -> None:
    """Bound what this session waits for, unless the URL or the server's settings do so already."""
    # Not as `options` of the connection: PgBouncer refuses those.
    connection.execute(
        "SELECT set_config(name, wanted, false) FROM pg_settings JOIN (VALUES "
        "('lock_timeout', %s), ('idle_in_transaction_session_timeout', %s)) AS ours (name, wanted) "
        "USING (name) WHERE setting = '0' AND source <> 'client'",
        (f"{max(1, round(lock_timeout * 1000))}ms", f"{round(IDLE_TIMEOUT * 1000)}ms"),
    )


class _LockWatch:
    """Finds out whom a connection's statement waits for, by a connection of its own.

    PostgreSQL itself names nobody when a lock is not given in time.
    """

    _HOLDERS = """
        SELECT pid, concat_ws(
            ', ', 'user ' || usename, 'application ' || nullif(application_name, ''), state
        ) FROM pg_stat_activity WHERE pid = ANY(pg_blocking_pids(%s)) ORDER BY pid
    """

    def __init__(
        self,
        connection: "psycopg.Connection[Any]",
        conninfo: str,
        address: str,
        interval: float,
        on_wait: Callable[[str], None] | None,
    ) -> None:
        self.holder = "a session that is not known"
        self._connection = connection
        self._conninfo = conninfo
        self._address = address
        self._interval = interval
        self._on_wait = on_wait
        self._told: set[int] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lock-watch", daemon=True)

    def __enter__(self) -> "_LockWatch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(timeout=float(_CONNECTION_DEFAULTS["connect_timeout"]))

    def _watch(self) -> None:
        import psycopg
        from psycopg.pq import TransactionStatus

        with ExitStack() as stack:
            own: psycopg.Connection[Any] | None = None
            while not self._ended.wait(self._interval):
                if self._connection.info.transaction_status != TransactionStatus.ACTIVE:
                    continue
                try:
                    own = own or stack.enter_context(
                        psycopg.connect(self._conninfo, autocommit=True)
                    )
                    self._look(own)
                except psycopg.Error:
                    return  # the statement's own error tells more

    def _look(self, own: "psycopg.Connection[Any]") -> None:
        pid = self._connection.info.backend_pid
        found = dict(own.execute(self._HOLDERS, (pid,)).fetchall())
        if not found:
            return
        self.holder = " and ".join(f"process {holder} ({what})" for holder, what in found.items())
        if self._on_wait and found.keys() != self._told:
            self._on_wait(f"Waiting for a lock in {self._address}, held by {self.holder}")
        self._told = set(found)


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


def _copy(cursor: "psycopg.Cursor[Any]", into: str, table: "pa.Table") -> None:
    """Append rows to a PostgreSQL table of a quoted name."""
    statement = f"COPY {into} ({_names(table.column_names)}) FROM STDIN (FORMAT csv)"
    with cursor.copy(statement.encode()) as copy:
        for text in _as_csv(table):
            copy.write(text)


def _upsert_copied(
    cursor: "psycopg.Cursor[Any]", target: Target, spec: TableSpec, table: "pa.Table"
) -> None:
    """Upsert rows into a PostgreSQL table, in their order, by way of a temporary one."""
    batch = f'"batch{spec.suffix}"'
    columns = ", ".join(f'"{name}" {kind}' for name, kind in spec.columns.items())
    cursor.execute(f"CREATE TEMPORARY TABLE {batch} ({columns}) ON COMMIT DROP".encode())
    _copy(cursor, batch, table)
    source = f"SELECT {_names(spec.columns)} FROM {batch} ORDER BY ctid"  # noqa: S608
    cursor.execute(_upsert_statement(target, spec, source).encode())


def _upsert_statement(target: Target, spec: TableSpec, source: str) -> str:
    updates = ", ".join(
        f'"{name}" = excluded."{name}"' for name in spec.columns if name not in spec.key
    )
    return (
        f"INSERT INTO {target.name(spec)} ({_names(spec.columns)}) {source} "
        f"ON CONFLICT ({_names(spec.key)}) DO UPDATE SET {updates}"
    )


def _trial_statement(target: Target, spec: TableSpec) -> str:
    """Return what lets the engine say, without writing, whether it could upsert such rows."""
    nulls = ", ".join(f"CAST(NULL AS {kind})" for kind in spec.columns.values())
    # WHERE, for without it PostgreSQL's parser takes ON CONFLICT for the ON of a join.
    return f"EXPLAIN {_upsert_statement(target, spec, f'SELECT {nulls} WHERE false')}"


def _conflict(target: Target, spec: TableSpec) -> TableConflictError:
    return TableConflictError(
        f"{target.shown(spec)} exists with other columns: choose another target_table"
    )


def _cannot_create(target: Target, error: Exception) -> TableConflictError:
    reason = str(error).splitlines()[0]
    return TableConflictError(
        f"Cannot create {target.shown(METRICS)} and its companions: {reason}; "
        "choose another target_table"
    )


def _names(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _arrow_schema(spec: TableSpec) -> "pa.Schema":
    import pyarrow as pa

    types = {
        "TEXT": pa.string(),
        "TIMESTAMP": pa.timestamp("us"),
        "DOUBLE PRECISION": pa.float64(),
        "BIGINT": pa.int64(),
        "BOOLEAN": pa.bool_(),
    }
    return pa.schema([(name, types[kind]) for name, kind in spec.columns.items()])


def arrow_table(spec: TableSpec, frame: "pd.DataFrame") -> "pa.Table":
    """Return a frame's rows in the types of the table; NaN and NaT become null."""
    import pyarrow as pa

    return pa.Table.from_pandas(frame, schema=_arrow_schema(spec), preserve_index=False)


class DuckDBWarehouse:
    """A DuckDB file, held by this process while open."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection") -> None:
        self._connection = connection

    def prepare(self, target: Target, specs: Sequence[TableSpec]) -> None:
        """Create the schema and the tables that are not there yet."""
        import duckdb

        with _process_lock(WRITES):
            try:
                for statement in _create_statements(target, specs):
                    self._connection.execute(statement)
            except (duckdb.BinderException, duckdb.CatalogException) as error:
                raise _cannot_create(target, error) from None
            for spec in specs:
                try:
                    self._connection.execute(_trial_statement(target, spec))
                except (duckdb.BinderException, duckdb.CatalogException):
                    raise _conflict(target, spec) from None

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
                self._connection.register("batch", arrow_table(spec, frame))
                source = f"SELECT {_names(spec.columns)} FROM batch"  # noqa: S608
                self._connection.execute(_upsert_statement(target, spec, source))
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
        tables = (pa.Table.from_batches([batch]) for batch in found)
        return _wanted_of(tables, found.schema, wanted)

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
        import psycopg

        with self._connection.transaction(), self._connection.cursor() as cursor:
            # IF NOT EXISTS does not protect two sessions that create the same thing at once.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('prefect-hamilton-warehouse'))")
            try:
                for statement in _create_statements(target, specs):
                    cursor.execute(statement.encode())
            except psycopg.ProgrammingError as error:
                raise _cannot_create(target, error) from None
            for spec in specs:
                try:
                    cursor.execute(_trial_statement(target, spec).encode())
                except psycopg.errors.InsufficientPrivilege:
                    raise
                except (psycopg.ProgrammingError, psycopg.errors.ObjectNotInPrerequisiteState):
                    raise _conflict(target, spec) from None

    def upsert(self, target: Target, rows: Sequence[tuple[TableSpec, "pd.DataFrame"]]) -> None:
        """Insert rows, or replace those with the same key; several tables in one transaction."""
        import psycopg

        with self._connection.transaction(), self._connection.cursor() as cursor:
            for spec, frame in rows:
                # In the order of the key, so that two loads never wait for each other's rows.
                table = arrow_table(spec, frame).sort_by([(name, "ascending") for name in spec.key])
                if not self._may_hold(cursor, target, spec, table):
                    with suppress(psycopg.errors.UniqueViolation), self._connection.transaction():
                        _copy(cursor, target.name(spec), table)
                        continue
                    # Another session has committed such a row since then.
                _upsert_copied(cursor, target, spec, table)

    @staticmethod
    def _may_hold(
        cursor: "psycopg.Cursor[Any]", target: Target, spec: TableSpec, table: "pa.Table"
    ) -> bool:
        """Tell whether a row is there whose key lies within the extent of a batch's keys.

        If not, the rows are new and need no upsert, which takes twice as long.
        """
        import pyarrow.compute as pc

        conditions, parameters = [], list[Any]()
        for name in spec.key:
            if spec.columns[name] == "TEXT":  # whose order depends on the database's collation
                conditions.append(f'"{name}" = ANY(%s)')
                parameters.append(pc.unique(table[name]).to_pylist())
            else:
                conditions.append(f'"{name}" BETWEEN %s AND %s')
                parameters += pc.min_max(table[name]).as_py().values()
        query = f"SELECT 1 FROM {target.name(spec)} WHERE {' AND '.join(conditions)} LIMIT 1"  # noqa: S608
        return cursor.execute(query.encode(), parameters).fetchone() is not None

    def read(
        self, query: str, parameters: Sequence[Any] = (), wanted: Wanted | None = None
    ) -> "pd.DataFrame":
        """Return what a query gives; `?` stands for a parameter."""
        query, parameters = query.replace("?", "%s"), list(parameters)
        with self._connection.transaction(), self._connection.cursor() as cursor:
            without_rows = f"SELECT * FROM ({query}) AS described LIMIT 0"  # noqa: S608
            cursor.execute(without_rows.encode(), parameters)
            schema = _described(cursor)
            with cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT csv)".encode(), parameters) as copy:
                return _wanted_of(_from_csv(copy, schema), schema, wanted)

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
            if not self._connection.closed:  # its locks have ended with it
                self._connection.execute("SELECT pg_advisory_unlock(hashtext(%s))", (purpose,))


@contextmanager
def _process_lock(purpose: str) -> Iterator[None]:
    """Keep this process's other threads with the same purpose waiting until the block ends."""
    lock = _thread_lock(purpose)
    if not lock.acquire(timeout=LOCK_TIMEOUT):
        raise WarehouseError(
            f"Another thread of this process has kept the warehouse's lock for {purpose} for "
            f"{LOCK_TIMEOUT:.0f} s: run again when it has ended"
        )
    try:
        yield
    finally:
        lock.release()


# Of what is read, so many rows, or bytes of text, are looked at together.
READ_ROWS = 100_000
CSV_BYTES = 8_000_000


def _wanted_of(
    tables: "Iterable[pa.Table]", schema: "pa.Schema", wanted: Wanted | None
) -> "pd.DataFrame":
    import pyarrow as pa

    if wanted:
        tables = (table.filter(pa.array(wanted(table.to_pandas()))) for table in tables)
    frame: pd.DataFrame = pa.concat_tables([schema.empty_table(), *tables]).to_pandas()
    return frame


def _as_csv(table: "pa.Table") -> Iterator[bytes]:
    """Write rows as CSV, as COPY reads it: text in quotes, null as nothing."""
    from pyarrow import csv

    for rows in table.to_batches(max_chunksize=2_000):
        text = io.BytesIO()
        csv.write_csv(rows, text, csv.WriteOptions(include_header=False))
        yield text.getvalue()


def _from_csv(
    copied: Iterable[bytes | bytearray | memoryview], schema: "pa.Schema"
) -> "Iterator[pa.Table]":
    """Parse CSV as COPY writes it; each piece is a row or several."""
    import pyarrow as pa
    from pyarrow import csv

    def parse(text: bytearray) -> pa.Table:
        return csv.read_csv(
            io.BytesIO(text),
            csv.ReadOptions(column_names=schema.names),
            csv.ParseOptions(newlines_in_values=True),
            csv.ConvertOptions(
                column_types=schema,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                true_values=["t"],
                false_values=["f"],
            ),
        )

    text = bytearray()
    for piece in copied:
        text += piece
        if len(text) > CSV_BYTES:
            yield parse(text)
            text.clear()
    if text:
        yield parse(text)


def _described(cursor: "psycopg.Cursor[Any]") -> "pa.Schema":
    """Return the columns of a cursor's result; types without a counterpart are read as text."""
    import pyarrow as pa

    types = {
        "float8": pa.float64(),
        "int8": pa.int64(),
        "int4": pa.int64(),
        "bool": pa.bool_(),
        "timestamp": pa.timestamp("us"),
    }
    columns = [
        (column.name, cursor.adapters.types.get(column.type_code))
        for column in cursor.description or []
    ]
    return pa.schema(
        [(name, types.get(kind.name if kind else "", pa.string())) for name, kind in columns]
    )


@cache
def _thread_lock(purpose: str) -> threading.Lock:
    return threading.Lock()


def _has_table(warehouse: Warehouse, target: Target, spec: TableSpec) -> bool:
    found = warehouse.read(
        "SELECT 1 FROM information_schema.tables "
        "WHERE table_catalog = ? AND table_schema = ? AND table_name = ?",
        (target.catalog, target.schema, target.table + spec.suffix),
    )
    return not found.empty
