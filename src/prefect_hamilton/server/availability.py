"""The API answers 503 with Retry-After while its database, or Valkey, is unavailable.

Prefect's own handler knows the errors of a driver, but a refused or timed-out connection is an
OSError and would be 500, which clients do not retry.
"""

import asyncio
from types import TracebackType

import asyncpg
import sqlalchemy as sa
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from prefect.logging import get_logger
from prefect.server.api.server import (
    custom_internal_exception_handler,
    is_client_retryable_exception,
)
from prefect.server.database import PrefectDBInterface, provide_database_interface
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from prefect_hamilton.server import engines

logger = get_logger("server.availability")

RETRY_AFTER_SECONDS = 10
"""Prefect's client retries five times, each after this time and up to a fifth more."""

PROBE_SECONDS = 2
"""How long the database may take to answer the readiness probe."""

DRIVERS = ("asyncpg.", "sqlalchemy.", "aiosqlite.")

AWAY: tuple[type[Exception], ...] = (
    OSError,  # refused, reset, timed out, host not found
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    sa.exc.DBAPIError,
    sa.exc.TimeoutError,  # no connection of the pool became free
    RedisConnectionError,
    RedisTimeoutError,
)
"""Errors that are looked at by `answer`."""


def is_away(error: Exception) -> bool:
    """Whether the error means that the database or Valkey is unavailable."""
    if isinstance(error, OSError):
        return _passed_through_driver(error.__traceback__)
    if isinstance(error, sa.exc.DBAPIError | asyncpg.PostgresError | asyncpg.InterfaceError):
        return is_client_retryable_exception(error) or not isinstance(error, sa.exc.DBAPIError)
    return isinstance(error, sa.exc.TimeoutError | RedisConnectionError | RedisTimeoutError)


def _passed_through_driver(traceback: TracebackType | None) -> bool:
    while traceback is not None:
        if str(traceback.tb_frame.f_globals.get("__name__")).startswith(DRIVERS):
            return True
        traceback = traceback.tb_next
    return False


async def answer(request: Request, error: Exception) -> Response:
    """Answer a request that failed with one of `AWAY`."""
    if not is_away(error):
        return await custom_internal_exception_handler(request, error)
    logger.warning(
        "%s %s was answered with 503: %s: %s",
        request.method,
        request.url.path,
        type(error).__name__,
        str(error).split("\n")[0],
    )
    return JSONResponse(
        {"exception_message": "Service Unavailable"},
        status_code=503,
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


async def readiness() -> JSONResponse:
    """Whether the database answers, asked within `PROBE_SECONDS`."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            engine = await _probe_engine(provide_database_interface())
            async with engine.connect() as connection:
                await connection.execute(sa.text("SELECT 1"))
    except AWAY:
        return JSONResponse({"message": "Database is not available"}, status_code=503)
    return JSONResponse({"message": "OK"})


async def _probe_engine(database: PrefectDBInterface) -> AsyncEngine:
    """Return an engine with a separate connection, which requests do not wait for."""
    if database.dialect.name != "postgresql":
        return await database.engine()
    return await engines.separate(
        database.database_config.connection_url,
        PROBE_SECONDS,
        connection_timeout=PROBE_SECONDS,
        sqlalchemy_pool_size=1,
    )
