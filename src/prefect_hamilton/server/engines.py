"""Engines for connections that are not those of requests."""

from typing import Any

from prefect.server.database.configurations import AsyncPostgresConfiguration
from sqlalchemy.ext.asyncio import AsyncEngine


async def separate(connection_url: str, seconds: float, **limits: Any) -> AsyncEngine:
    """Return an engine of PostgreSQL whose connections requests neither use nor wait for.

    Prefect keeps engines by URL and `seconds`, the time limit of a statement: this limit, which
    no other engine may have, makes it a separate one. `limits` are those of the configuration.
    """
    configuration = AsyncPostgresConfiguration(connection_url, timeout=seconds, **limits)
    return await configuration.engine()
