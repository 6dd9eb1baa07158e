"""Bring the Prefect database to this version's schema, one process at a time.

Waits for PostgreSQL to answer and for other pods that migrate. A wrong password or a database that
does not exist ends it at once, with a sentence.

Registers Prefect's block types too: servers that do so at their start, several at once on an empty
database, get into each other's way.

Some of Prefect's migrations create indexes outside of a transaction, so that one that is killed
cannot always be run again. The first migration of an empty database is marked while it runs; when
its mark is still there, nothing has ever used that database, and it is emptied and begun afresh.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import sqlalchemy as sa
from prefect.plugins import load_prefect_collections
from prefect.server.database import provide_database_interface
from prefect.server.database.alembic_commands import alembic_upgrade
from prefect.server.models.block_registration import run_block_auto_registration
from prefect.settings import get_current_settings
from prefect.utilities.asyncutils import run_sync_in_worker_thread
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateTable, DropTable
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_fixed,
)

# Any number that nobody else locks in this database.
LOCK = 0x70726566656374
WAIT_SECONDS = 600
FIRST = sa.Table("prefect_hamilton_first_migration", sa.MetaData())
"""A table that is there from before the first migration of an empty database until after it."""
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


async def main() -> None:
    """Migrate under the lock."""
    engine = await provide_database_interface().engine()
    database = get_current_settings().server.database
    where = f"{database.host}:{database.port}/{database.name}"
    try:
        async with locked(engine, where) as connection:
            await mark_first(connection, where)
            await run_sync_in_worker_thread(alembic_upgrade)
            await register_block_types(where)
            await connection.execute(DropTable(FIRST, if_exists=True))
    except NotReadyError as error:
        sys.exit(f"PostgreSQL at {where} did not answer for {WAIT_SECONDS} s: {error}")
    except FATAL as error:
        sys.exit(f"PostgreSQL at {where} refuses user {database.user}: {error}")
    except sa.exc.DBAPIError as error:
        sys.exit(
            f"The schema in {where} cannot be brought up to date: {reason(error)}. If an earlier "
            "migration was interrupted, drop the index that already exists and start again, or "
            "restore the backup."
        )
    print(f"The schema in {where} is current.")


async def register_block_types(where: str) -> None:
    """Register Prefect's block types and those of the installed integrations."""
    load_prefect_collections()
    try:
        async with await provide_database_interface().session() as session:
            await run_block_auto_registration(session=session)
    except sa.exc.DBAPIError as error:
        sys.exit(f"Block types cannot be registered in {where}: {reason(error)}")


def reason(error: sa.exc.DBAPIError) -> BaseException:
    """Return what PostgreSQL said: SQLAlchemy's words for it hold the name of a class."""
    return (error.orig and error.orig.__cause__) or error


async def mark_first(connection: AsyncConnection, where: str) -> None:
    """Mark an empty database; empty one again whose first migration did not end."""
    tables = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
    if FIRST.name in tables:
        # A server registers flows; none has run here, unless somebody went around this script.
        is_used = sa.text("SELECT EXISTS (SELECT FROM flow)")
        if "flow" in tables and await connection.scalar(is_used):
            sys.exit(
                f"The first migration of {where} did not end, yet it holds flows: drop the table "
                f"{FIRST.name} to migrate what is there, or restore a backup."
            )
        print(f"The first migration of {where} did not end: it begins again.", flush=True)
        await connection.execute(sa.text(EMPTY))
    elif not tables:
        await connection.execute(CreateTable(FIRST))


@asynccontextmanager
async def locked(engine: AsyncEngine, where: str) -> AsyncIterator[AsyncConnection]:
    """Hold the lock and yield its connection, with which it ends: a killed pod leaves none."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(NotReadyError),
        stop=stop_after_delay(WAIT_SECONDS),
        wait=wait_fixed(0.5),
        reraise=True,
    ):
        with attempt:
            connection = await connect(engine, where, first=attempt.retry_state.attempt_number == 1)
    try:
        if not await try_lock(connection):
            print("Waiting for another pod that migrates.", flush=True)
            is_locked = retry_if_result(lambda held: not held)
            await AsyncRetrying(retry=is_locked, wait=wait_fixed(1))(try_lock, connection)
        yield connection
    finally:
        await connection.close()


async def connect(engine: AsyncEngine, where: str, *, first: bool) -> AsyncConnection:
    """Connect once. Raises NotReadyError when it is worth another try."""
    try:
        connection = await engine.connect()
        # A transaction that stays open would hold up CREATE INDEX CONCURRENTLY for ever.
        return await connection.execution_options(isolation_level="AUTOCOMMIT")
    except FATAL:
        raise
    except (OSError, asyncpg.PostgresError, sa.exc.DBAPIError) as error:
        if first:
            print(f"Waiting for PostgreSQL at {where} ({error}).", flush=True)
        raise NotReadyError(str(error)) from error


async def try_lock(connection: AsyncConnection) -> bool:
    """Take the lock, or say that another process holds it."""
    held = await connection.scalar(sa.text("SELECT pg_try_advisory_lock(:lock)"), {"lock": LOCK})
    return bool(held)


if __name__ == "__main__":
    asyncio.run(main())
