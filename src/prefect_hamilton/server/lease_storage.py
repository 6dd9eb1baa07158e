"""Leases of concurrency limits in PostgreSQL, where they outlive the server.

A flow run that holds a slot of a limit has a lease, which it renews. Prefect keeps leases in
memory, in files, or in Redis. When a server that kept them in memory starts again, it ends these
flow runs, and the slots of those that crash are never free again.

`migrate` creates the table. The name of the class is the one that Prefect looks for.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from prefect.server.concurrency.lease_storage import (
    ConcurrencyLeaseStorage as PrefectConcurrencyLeaseStorage,
)
from prefect.server.concurrency.lease_storage import ConcurrencyLimitLeaseMetadata
from prefect.server.database import provide_database_interface
from prefect.server.utilities.leasing import ResourceLease
from prefect.types._concurrency import ConcurrencyLeaseHolder
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from prefect_hamilton.server import engines

Lease = ResourceLease[ConcurrencyLimitLeaseMetadata]

LEASES = sa.Table(
    "prefect_hamilton_lease",
    sa.MetaData(),
    sa.Column("id", sa.UUID, primary_key=True),
    sa.Column("resource_ids", postgresql.ARRAY(sa.UUID), nullable=False),
    sa.Column("metadata", postgresql.JSONB(none_as_null=True)),
    sa.Column("expiration", sa.TIMESTAMP(timezone=True), nullable=False, index=True),
    sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False),
)

WORKERS = sa.table("worker", sa.column("last_heartbeat_time", sa.TIMESTAMP(timezone=True)))

SILENCE = timedelta(seconds=60), timedelta(seconds=900)
"""For how long no worker has been heard of while the API is unreachable.

Workers send a heartbeat every 30 s, and a lease that was to be renewed expires after 75 s. Flow
runs that reach no API for 600 s end, and there may be no worker at all.
"""

STATEMENT_SECONDS = 11
"""How long a statement may take; the leases have a separate engine by it.

A request that creates a lease has a connection already. If it waited for another one of the same
pool, requests could wait for each other.
"""
CONNECTIONS = 2

RENEWAL_SECONDS = 300
"""Within this time every holder renews its lease: Prefect's engine does after 225 s."""


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def later() -> datetime:
    """Return when all holders that are alive will have renewed their leases."""
    return now() + timedelta(seconds=RENEWAL_SECONDS)


_quiet_until = later()
"""No lease expires before: its holder could not renew it while the server or its database was away.
"""


@asynccontextmanager
async def connected() -> AsyncIterator[AsyncConnection]:
    """Connect to the database, in a transaction."""
    global _quiet_until
    engine = await engines.separate(
        provide_database_interface().database_config.connection_url,
        STATEMENT_SECONDS,
        sqlalchemy_pool_size=CONNECTIONS,
        sqlalchemy_max_overflow=1,
    )
    try:
        async with engine.begin() as connection:
            yield connection
    except (OSError, sa.exc.SQLAlchemyError):  # a timeout is an OSError
        _quiet_until = later()
        raise


class ConcurrencyLeaseStorage(PrefectConcurrencyLeaseStorage):
    """Prefect's interface of a lease storage."""

    async def create_lease(
        self,
        resource_ids: list[UUID],
        ttl: timedelta,
        metadata: ConcurrencyLimitLeaseMetadata | None = None,
    ) -> Lease:
        """Create a lease that lasts for `ttl`."""
        lease: Lease = ResourceLease(
            resource_ids=resource_ids, metadata=metadata, expiration=now() + ttl
        )
        row = {
            "id": lease.id,
            "resource_ids": resource_ids,
            "metadata": metadata.model_dump(mode="json") if metadata else None,
            "expiration": lease.expiration,
            "created_at": lease.created_at,
        }
        async with connected() as connection:
            await connection.execute(LEASES.insert().values(row))
        return lease

    async def read_lease(self, lease_id: UUID) -> Lease | None:
        """Return a lease; None if there is none of this id."""
        async with connected() as connection:
            found = await connection.execute(LEASES.select().where(LEASES.c.id == lease_id))
            row = found.mappings().one_or_none()
        return _lease(row) if row else None

    async def renew_lease(self, lease_id: UUID, ttl: timedelta) -> bool:
        """Let a lease last for `ttl` from now; False if there is none of this id."""
        renewed = LEASES.update().where(LEASES.c.id == lease_id).values(expiration=now() + ttl)
        async with connected() as connection:
            return (await connection.execute(renewed)).rowcount == 1

    async def revoke_lease(self, lease_id: UUID) -> None:
        """Delete a lease."""
        async with connected() as connection:
            await connection.execute(LEASES.delete().where(LEASES.c.id == lease_id))

    async def read_active_lease_ids(self, limit: int = 100, offset: int = 0) -> list[UUID]:
        """Return leases that have not expired."""
        active = LEASES.c.expiration > now()
        return await _ids(sa.select(LEASES.c.id).where(active).limit(limit).offset(offset))

    async def read_expired_lease_ids(self, limit: int = 100) -> list[UUID]:
        """Return leases that have expired, and whose slots the server takes back."""
        if now() < _quiet_until or await _is_api_unreachable():
            return []
        expired = LEASES.c.expiration < now()
        return await _ids(sa.select(LEASES.c.id).where(expired).limit(limit))

    async def list_holders_for_limit(
        self, limit_id: UUID
    ) -> list[tuple[UUID, ConcurrencyLeaseHolder]]:
        """Return who holds slots of a limit, by lease."""
        held = LEASES.select().where(
            LEASES.c.resource_ids.contains([limit_id]), LEASES.c.expiration > now()
        )
        async with connected() as connection:
            leases = [_lease(row) for row in (await connection.execute(held)).mappings()]
        return [
            (lease.id, lease.metadata.holder)
            for lease in leases
            if lease.metadata and lease.metadata.holder
        ]


async def _is_api_unreachable() -> bool:
    """Whether no worker has reached the API lately, so that the holders of leases may not either.

    This process may be that of the background services, which goes on without the API.
    """
    global _quiet_until
    async with connected() as connection:
        heard = await connection.scalar(sa.select(sa.func.max(WORKERS.c.last_heartbeat_time)))
    if heard is None or not SILENCE[0] < now() - heard < SILENCE[1]:
        return False
    _quiet_until = later()
    return True


async def _ids(query: sa.Select[Any]) -> list[UUID]:
    async with connected() as connection:
        found: Sequence[UUID] = (await connection.scalars(query.order_by(LEASES.c.id))).all()
    return list(found)


def _lease(row: sa.RowMapping) -> Lease:
    metadata = row["metadata"] and ConcurrencyLimitLeaseMetadata.model_validate(row["metadata"])
    return ResourceLease(**{**row, "metadata": metadata})
