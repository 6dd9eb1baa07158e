"""A task of the background services whose worker is gone is done by another one soon."""

import asyncio
from datetime import timedelta

import pytest
from docket import Docket, Worker
from prefect.server.api import background_workers

from prefect_hamilton.server import redelivery

pytestmark = pytest.mark.anyio

NAME = "of-the-test"


async def test_what_a_lost_worker_had_taken_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_workers, "Worker", Worker)  # put back afterwards
    monkeypatch.setattr(redelivery, "TIMEOUT", timedelta(seconds=1))
    redelivery.shorten()
    done = asyncio.Event()

    async def service() -> None:
        done.set()

    async with Docket(name=NAME, url="memory://redelivery") as docket:
        docket.register(service)
        await docket.add(service)()
        async with docket.redis() as redis:
            group = docket.worker_group_name
            await redis.xgroup_create(docket.stream_key, group, id="0")
            taken = await redis.xreadgroup(group, "lost", {docket.stream_key: ">"}, count=1)
        assert taken

        async with background_workers.background_worker(
            docket, ephemeral=True, webserver_only=True
        ):
            await asyncio.wait_for(done.wait(), timeout=30)
