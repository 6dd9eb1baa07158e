"""Migrate the Prefect database to this version's schema, one process at a time.

It waits for PostgreSQL to answer, and for another pod that migrates. With a wrong password or a
missing database, it ends at once with an explanation.

It also creates the table of `lease_storage`. It registers Prefect's block types, because several
servers that do so at the same time on an empty database conflict.

Some of Prefect's migrations create indexes outside of a transaction, so that one that is killed
cannot always be run again. The first migration of an empty database is marked while it runs; when
its mark is still there, nothing has ever used that database, and it is emptied and begun afresh.
"""

import argparse
import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import sqlalchemy as sa
from prefect.plugins import load_prefect_collections
from prefect.server.database import provide_database_interface
from prefect.server.database.alembic_commands import alembic_upgrade
from prefect.server.models.block_registration import run_block_auto_registration
from prefect.utilities.asyncutils import run_sync_in_worker_thread
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateTable, DropTable
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    RetryError,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_fixed,
)

from prefect_hamilton.logs import lines
from prefect_hamilton.server.lease_storage import LEASES

# Any number that no other program locks in this database.
LOCK = 0x70726566656374
WAIT_SECONDS = 600
"""Maximum number of seconds to wait for PostgreSQL."""
LOCK_SECONDS = 1800
"""Default maximum number of seconds to wait for another pod that migrates."""
REPORT_SECONDS = 60
HOLDER = """
SELECT session.pid, session.application_name, session.usename, session.client_addr
FROM pg_locks AS held JOIN pg_stat_activity AS session USING (pid)
WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (held.classid::bigint << 32 | held.objid::bigint) = :lock
"""
FIRST = sa.Table("prefect_hamilton_first_migration", sa.MetaData())
"""A table that exists during the first migration of an empty database."""
# One statement, so that all goes or nothing.
EMPTY = """
DO $$
DECLARE
  statement text;
BEGIN
  FOR statement IN
    SELECT format('DROP TABLE %s CASCADE', oid::regclass) FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace
      AND relkind = 'r' AND relname <> 'prefect_hamilton_first_migration'
    UNION ALL
    SELECT format('DROP TYPE %s CASCADE', oid::regtype) FROM pg_type
    WHERE typnamespace = current_schema()::regnamespace AND typtype = 'e'
  LOOP
    EXECUTE statement;
  END LOOP;
END
$$
"""
FATAL = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)


class NotReadyError(Exception):
    """PostgreSQL does not answer yet."""


class LockHeldError(Exception):
    """Another session holds the lock; the text names it."""


async def migrate(lock_seconds: float) -> None:
    """Migrate with the lock held. `lock_seconds` is the maximum time to wait for it."""
    # Takes half a second, in which PostgreSQL may still be starting.
    load_prefect_collections()
    engine = await provide_database_interface().engine()
    database = engine.url
    where = f"{database.host}:{database.port or 5432}/{database.database}"
    try:
        async with locked(engine, where, lock_seconds) as connection:
            await mark_first(connection, where)
            await run_sync_in_worker_thread(alembic_upgrade)
            await connection.run_sync(LEASES.create, checkfirst=True)
            await register_block_types(where)
            await connection.execute(DropTable(FIRST, if_exists=True))
    except NotReadyError as error:
        sys.exit(f"PostgreSQL at {where} did not answer for {WAIT_SECONDS} s: {error}")
    except LockHeldError as error:
        sys.exit(
            f"The schema in {where} was not migrated: its lock has been held for "
            f"{lock_seconds:g} s by {error}: wait until that pod has ended, or terminate its "
            "session in PostgreSQL with pg_terminate_backend()."
        )
    except FATAL as error:
        sys.exit(f"PostgreSQL at {where} refuses user {database.username}: {error}")
    except sa.exc.DBAPIError as error:
        sys.exit(
            f"The schema in {where} cannot be migrated: {reason(error)}. If an earlier "
            "migration was interrupted, drop the index that already exists and start again, or "
            "restore the backup."
        )
    print(f"The schema in {where} is current.")


async def register_block_types(where: str) -> None:
    """Register Prefect's block types and those of the integrations that are loaded."""
    try:
        async with await provide_database_interface().session() as session:
            await run_block_auto_registration(session=session)
    except sa.exc.DBAPIError as error:
        sys.exit(f"Block types cannot be registered in {where}: {reason(error)}")


def reason(error: sa.exc.DBAPIError) -> BaseException:
    """Return the error of PostgreSQL, since SQLAlchemy's text contains the name of a class."""
    return (error.orig and error.orig.__cause__) or error


async def mark_first(connection: AsyncConnection, where: str) -> None:
    """Mark an empty database; empty one again whose first migration did not end."""
    tables = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
    if FIRST.name in tables:
        # A server registers flows. None has run here, unless it was started without this program.
        is_used = sa.text("SELECT EXISTS (SELECT FROM flow)")
        if "flow" in tables and await connection.scalar(is_used):
            sys.exit(
                f"The first migration of {where} was not completed, but the database contains "
                f"flows: drop the table {FIRST.name} to migrate it as it is, or restore a backup."
            )
        print(f"The first migration of {where} was interrupted: it starts again.", flush=True)
        await connection.execute(sa.text(EMPTY))
    elif not tables:
        await connection.execute(CreateTable(FIRST))


@asynccontextmanager
async def locked(
    engine: AsyncEngine, where: str, lock_seconds: float
) -> AsyncIterator[AsyncConnection]:
    """Hold the lock and yield its connection, with which it ends: a killed pod leaves none.

    Raises NotReadyError and LockHeldError.
    """
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(NotReadyError),
        stop=stop_after_delay(WAIT_SECONDS),
        wait=wait_fixed(0.5),
        reraise=True,
    ):
        with attempt:
            connection = await connect(engine, where, first=attempt.retry_state.attempt_number == 1)
    try:
        await lock(connection, where, lock_seconds)
        yield connection
    finally:
        await connection.close()


async def connect(engine: AsyncEngine, where: str, *, first: bool) -> AsyncConnection:
    """Connect once. Raises NotReadyError when it is worth another try, or one of FATAL."""
    try:
        connection = await engine.connect()
        # A transaction that stays open would hold up CREATE INDEX CONCURRENTLY for ever.
        return await connection.execution_options(isolation_level="AUTOCOMMIT")
    except (OSError, asyncpg.PostgresError, sa.exc.DBAPIError) as error:
        cause = reason(error) if isinstance(error, sa.exc.DBAPIError) else error
        if isinstance(cause, FATAL):
            raise cause from error
        if first:
            print(f"Waiting for PostgreSQL at {where} ({cause}).", flush=True)
        raise NotReadyError(str(cause)) from error


async def lock(connection: AsyncConnection, where: str, seconds: float) -> None:
    """Take the lock within some seconds. Raises LockHeldError.

    It polls, because a waiting statement would block CREATE INDEX CONCURRENTLY of the pod that has
    the lock.
    """
    # Under this name another pod reports who holds the lock.
    name = sa.text("SELECT set_config('application_name', :name, false)")
    await connection.execute(name, {"name": f"pod {socket.gethostname()}"})

    async def report(state: RetryCallState) -> None:
        if state.attempt_number % REPORT_SECONDS == 1:
            print(
                f"Waiting for another migration of {where}: its lock is held by "
                f"{await holder(connection)}.",
                flush=True,
            )

    is_held = AsyncRetrying(
        retry=retry_if_result(lambda taken: not taken),
        stop=stop_after_delay(seconds),
        wait=wait_fixed(1),
        before_sleep=report,
    )
    try:
        await is_held(try_lock, connection)
    except RetryError as error:
        raise LockHeldError(await holder(connection)) from error


async def try_lock(connection: AsyncConnection) -> bool:
    """Take the lock, or say that another process holds it."""
    held = await connection.scalar(sa.text("SELECT pg_try_advisory_lock(:lock)"), {"lock": LOCK})
    return bool(held)


async def holder(connection: AsyncConnection) -> str:
    """Return who holds the lock, as far as PostgreSQL lets this user see it."""
    found = (await connection.execute(sa.text(HOLDER), {"lock": LOCK})).first()
    if found is None:
        return "a session that has just ended"
    name = found.application_name or "an unnamed client"
    address = f" at {found.client_addr}" if found.client_addr else ""
    return f"{name}{address} (process {found.pid} of PostgreSQL, user {found.usename})"


def main() -> None:
    """Migrate the database of Prefect's settings."""
    parser = argparse.ArgumentParser(prog="prefect_hamilton.server.migrate", description=__doc__)
    parser.add_argument(
        "--lock-timeout",
        type=float,
        default=LOCK_SECONDS,
        metavar="SECONDS",
        help="how long to wait for another pod that migrates; default: %(default)s",
    )
    asyncio.run(migrate(parser.parse_args().lock_timeout))


if __name__ == "__main__":
    with lines("prefect_hamilton.server.migrate"):
        main()
