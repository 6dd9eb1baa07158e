"""An event counts once, also one that its sender repeats, or that is stored long after it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.events import Event
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from prefect_hamilton.exporter import families, listening
from prefect_hamilton.exporter.counting import Counting
from prefect_hamilton.exporter.listening import Listening
from prefect_hamilton.exporter.series import Series
from tests.exporter.conftest import PASSWORD, Api

pytestmark = [pytest.mark.services, pytest.mark.anyio, pytest.mark.timeout(300)]

POD = "prefect.kubernetes.pod.pending"
REMEMBERED_BY_SERVER = 1000
"""Number of events of which it lets none pass twice, for some minutes."""


class Counted(Counting):
    """What was counted, by the events' ids."""

    def __init__(self) -> None:
        super().__init__(Series(families.ALL))
        self.ids: list[UUID] = []

    def count(self, event: Event) -> None:
        self.ids.append(event.id)


class Here:
    """Listening as in a process that began half an hour ago."""

    def __init__(self, api: Api, client: PrefectClient) -> None:
        self.api = api
        self.counted = Counted()
        began = datetime.now(UTC) - timedelta(minutes=30)
        self.listening = Listening(client, self.counted, settle_seconds=0, first=began)

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        url = f"{self.api.server.url}/api"
        with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: PASSWORD}):
            task = asyncio.create_task(self.listening.forever())
            await self.until_connected()
            yield
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def until_connected(self) -> None:
        """Return when the stream brings an event."""
        before = len(self.counted.ids)
        async for attempt in again():
            with attempt:
                self.api.emit(POD, "other")
                assert len(self.counted.ids) > before

    async def until_counted(self, id_: UUID, *, compare: bool = False) -> None:
        async for attempt in again():
            with attempt:
                if compare:
                    await self.listening.compare()
                assert id_ in self.counted.ids


def again() -> AsyncRetrying:
    """Return attempts until there is no AssertionError."""
    return AsyncRetrying(
        retry=retry_if_exception_type(AssertionError),
        stop=stop_after_delay(60),
        wait=wait_fixed(0.2),
        reraise=True,
    )


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def here(api: Api) -> AsyncIterator[Here]:
    async with PrefectClient(f"{api.server.url}/api", auth_string=PASSWORD) as client:
        yield Here(api, client)


async def test_an_event_that_is_repeated_counts_once(
    api: Api, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker repeats that of a stuck pod when the period in which it occurred is compared."""
    monkeypatch.setattr(listening, "OVERLAP", timedelta(seconds=10))
    monkeypatch.setattr(listening, "REMEMBERED", timedelta(seconds=30))
    stuck, marker = uuid4(), uuid4()
    async with here.stream():
        api.emit(POD, "stuck", id_=stuck, age=timedelta(seconds=40))
        await here.until_counted(stuck)
        await here.listening.compare()
        for _ in range(REMEMBERED_BY_SERVER):
            api.emit("other.event", "other")
        api.emit(POD, "stuck", id_=stuck, age=timedelta(seconds=40))
        api.emit(POD, "other", id_=marker)
        await here.until_counted(marker)
    assert here.counted.ids.count(stuck) == 1


async def test_an_event_that_is_stored_late_counts(api: Api, here: Here) -> None:
    """A flow pod sends what it has kept while the server was away."""
    await here.listening.compare()
    late = uuid4()
    api.emit(POD, "late", id_=late, age=timedelta(minutes=5))
    await here.until_counted(late, compare=True)
