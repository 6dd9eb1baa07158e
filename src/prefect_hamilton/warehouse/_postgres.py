"""The engine for a PostgreSQL database."""

import io
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from prefect_hamilton.warehouse import _sql
from prefect_hamilton.warehouse._errors import WarehouseError
from prefect_hamilton.warehouse._frames import Wanted, arrow_table, wanted_of
from prefect_hamilton.warehouse._tables import TableSpec, Target
from prefect_hamilton.warehouse._url import address as address_of

if TYPE_CHECKING:
    import pandas as pd
    import psycopg
    import pyarrow as pa

# Seconds after which PostgreSQL ends a transaction in which nothing happens: its client is frozen
# or gone. Shorter than the package's LOCK_TIMEOUT, so that a session that waits for it continues.
IDLE_TIMEOUT = 60.0
# Seconds between two checks of which session a statement waits for.
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
# How many bytes of text are parsed together.
CSV_BYTES = 8_000_000


@contextmanager
def connect(
    parameters: Mapping[str, str], lock_timeout: float, on_wait: Callable[[str], None] | None
) -> Iterator["PostgresWarehouse"]:
    """Open the database, as `prefect_hamilton.warehouse.connect` does."""
    import psycopg
    from psycopg.conninfo import make_conninfo

    address = address_of(parameters)
    conninfo = make_conninfo(**{**_CONNECTION_DEFAULTS, **parameters})
    try:
        connection = psycopg.connect(conninfo, autocommit=True)
    except psycopg.Error as error:
        raise WarehouseError(f"Cannot connect to {address}: {_reason(error, parameters)}") from None
    interval = min(LOOK_SECONDS, lock_timeout / 4)
    with connection, _LockWatch(connection, conninfo, address, interval, on_wait) as watch:
        try:
            _bound_waits(connection, lock_timeout)
            yield PostgresWarehouse(connection)
        except psycopg.errors.LockNotAvailable:
            raise WarehouseError(
                f"Gave up waiting for a lock in {address}, held by {watch.holder}: wait until "
                "that session has ended its transaction, or terminate it with "
                "pg_terminate_backend, and run again"
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
        return (
            f"{type(error).__name__} (the message contains the password, so it is not shown): "
            "check host, port and user"
        )
    return reason


def _bound_waits(connection: "psycopg.Connection[Any]", lock_timeout: float) -> None:
    """Bound what this session waits for, unless the URL or the server's settings do so already."""
    # Not as `options` of the connection: PgBouncer refuses those.
    connection.execute(
        "SELECT set_config(name, wanted, false) FROM pg_settings JOIN (VALUES "
        "('lock_timeout', %s), ('idle_in_transaction_session_timeout', %s)) AS caps (name, wanted) "
        "USING (name) WHERE setting = '0' AND source <> 'client'",
        (f"{max(1, round(lock_timeout * 1000))}ms", f"{round(IDLE_TIMEOUT * 1000)}ms"),
    )


class _LockWatch:
    """Finds out which session a connection's statement waits for, by a second connection.

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
        self.holder = "an unknown session"
        self._connection = connection
        self._conninfo = conninfo
        self._address = address
        self._interval = interval
        self._on_wait = on_wait
        self._reported: set[int] = set()
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
        if self._on_wait and found.keys() != self._reported:
            self._on_wait(f"Waiting for a lock in {self._address}, held by {self.holder}")
        self._reported = set(found)


def _copy(cursor: "psycopg.Cursor[Any]", into: str, table: "pa.Table") -> None:
    """Append rows to a PostgreSQL table of a quoted name."""
    statement = f"COPY {into} ({_sql.names(table.column_names)}) FROM STDIN (FORMAT csv)"
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
    source = f"SELECT {_sql.names(spec.columns)} FROM {batch} ORDER BY ctid"  # noqa: S608
    cursor.execute(_sql.upsert_statement(target, spec, source).encode())


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
                for statement in _sql.create_statements(target, specs):
                    cursor.execute(statement.encode())
            except psycopg.ProgrammingError as error:
                raise _sql.cannot_create(target, error) from None
            for spec in specs:
                try:
                    cursor.execute(_sql.trial_statement(target, spec).encode())
                except psycopg.errors.InsufficientPrivilege:
                    raise
                except (psycopg.ProgrammingError, psycopg.errors.ObjectNotInPrerequisiteState):
                    raise _sql.conflict(target, spec) from None

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

        conditions: list[str] = []
        parameters: list[Any] = []
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
        values = list(parameters) or None
        if values:  # psycopg leaves a query without any as it is
            query = query.replace("%", "%%").replace("?", "%s")
        with self._connection.transaction(), self._connection.cursor() as cursor:
            without_rows = f"SELECT * FROM ({query}) AS described LIMIT 0"  # noqa: S608
            cursor.execute(without_rows.encode(), values)
            schema = _described(cursor)
            with cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT csv)".encode(), values) as copy:
                return wanted_of(_from_csv(copy, schema), schema, wanted)

    def has_table(self, target: Target, spec: TableSpec) -> bool:
        """Tell whether a table is there."""
        return _sql.has_table(self.read, target, spec)

    @contextmanager
    def exclusively(self, purpose: str) -> Iterator[None]:
        """Keep every other session with the same purpose waiting until the block ends."""
        self._connection.execute("SELECT pg_advisory_lock(hashtext(%s))", (purpose,))
        try:
            yield
        finally:
            if not self._connection.closed:  # its locks have ended with it
                self._connection.execute("SELECT pg_advisory_unlock(hashtext(%s))", (purpose,))


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
        "float4": pa.float64(),
        "numeric": pa.float64(),
        "int8": pa.int64(),
        "int4": pa.int64(),
        "int2": pa.int64(),
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
