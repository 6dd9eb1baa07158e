"""Bring the Prefect database to this version's schema, one process at a time.

Waits for PostgreSQL to answer and for other pods that migrate. A wrong password or a database that
does not exist ends it at once, with a sentence.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import sqlalchemy as sa
from prefect.server.database import provide_database_interface
from prefect.server.database.alembic_commands import alembic_upgrade
from prefect.settings import get_current_settings
from prefect.utilities.asyncutils import run_sync_in_worker_thread
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
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
        async with locked(engine, where):
            await run_sync_in_worker_thread(alembic_upgrade)
    except NotReadyError as error:
        sys.exit(f"PostgreSQL at {where} did not answer for {WAIT_SECONDS} s: {error}")
    except FATAL as error:
        sys.exit(f"PostgreSQL at {where} refuses user {database.user}: {error}")
    print(f"The schema in {where} is current.")


@asynccontextmanager
async def locked(engine: AsyncEngine, where: str) -> AsyncIterator[None]:
    """Hold the lock. It ends with its connection, so a killed pod leaves none behind."""
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
        yield
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
