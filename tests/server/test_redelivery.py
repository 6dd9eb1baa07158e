"""Tasks and messages of a background service that is gone are done by another one, soon."""

import asyncio
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from docket import Docket, Worker
from prefect.server.api import background_workers
from prefect_redis.client import get_async_redis_client

from prefect_hamilton.server import redelivery
from tests import services

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


@pytest.fixture
def valkey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Valkey, or Redis, that Prefect's settings name."""
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if not program:
        pytest.skip("not on PATH: valkey-server, redis-server")
    with services.valkey(tmp_path, program, "of-the-test") as port:
        monkeypatch.setenv("PREFECT_REDIS_MESSAGING_PORT", str(port))
        monkeypatch.setenv("PREFECT_REDIS_MESSAGING_PASSWORD", "of-the-test")
        yield


@pytest.mark.usefixtures("valkey")
async def test_a_message_that_was_delivered_and_not_done_is_kept() -> None:
    client = get_async_redis_client()
    now = int(time.time() * 1000)
    ids = [await client.xadd("events", {"one": "1"}, id=f"{now + each}-0") for each in range(4)]
    for group, done in (("triggers", ids[:1]), ("recorder", ids)):
        await client.xgroup_create("events", group, id="0")
        await client.xreadgroup(group, "lost", {"events": ">"})
        await client.xack("events", group, *done)

    await redelivery.trim("events")

    kept = await client.xrange("events")
    assert [id_ for id_, _ in kept] == ids[1:]
    _next, found, gone = await client.xautoclaim("events", "triggers", "other", min_idle_time=0)
    assert [id_ for id_, _ in found] == ids[1:]
    assert gone == []


@pytest.mark.usefixtures("valkey")
async def test_a_message_that_all_groups_have_done_is_removed() -> None:
    client = get_async_redis_client()
    now = int(time.time() * 1000)
    ids = [await client.xadd("events", {"one": "1"}, id=f"{now + each}-0") for each in range(3)]
    await client.xgroup_create("events", "triggers", id="0")
    await client.xreadgroup("triggers", "one", {"events": ">"})
    await client.xack("events", "triggers", *ids)

    await redelivery.trim("events", "0-0")

    kept = await client.xrange("events")
    assert [id_ for id_, _ in kept] == ids[-1:]


@pytest.mark.usefixtures("valkey")
async def test_a_message_that_nobody_does_is_removed_in_the_end() -> None:
    client = get_async_redis_client()
    now = int(time.time() * 1000)
    old = now - int((redelivery.KEPT + timedelta(minutes=1)).total_seconds() * 1000)
    for milliseconds in (old, now):
        await client.xadd("events", {"one": "1"}, id=f"{milliseconds}-0")
    await client.xgroup_create("events", "triggers", id="0")
    await client.xreadgroup("triggers", "lost", {"events": ">"})

    await redelivery.trim("events")

    kept = await client.xrange("events")
    assert [id_ for id_, _ in kept] == [f"{now}-0"]


@pytest.mark.usefixtures("valkey")
async def test_a_stream_that_is_not_there_yet_is_left_alone() -> None:
    await redelivery.trim("events")

    assert await get_async_redis_client().exists("events") == 0
