"""Every event once: from the stream, and what that did not bring from the stored events.

The server drops events of the stream that it cannot send fast enough, and a broken stream brings
none. So each refresh compares how many events are stored with how many came, up to `SETTLE_SECONDS`
ago, and reads them if the numbers differ. The same closes the gap after a restart of this process:
the position of the last scrape is stored as a variable of Prefect, so that a new pod finds it too.

Senders repeat events: the worker sends that of a pod whose image cannot be pulled at each attempt.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.events import Event
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventOccurredFilter, EventOrder
from prefect.logging import get_logger

from prefect_hamilton.exporter import families
from prefect_hamilton.exporter.counting import RUN, Counting, wanted

SETTLE_SECONDS = 15.0
"""The server stores events in batches, some seconds after they are in the stream."""
OVERLAP = timedelta(minutes=10)
"""Each period is compared for as long, as senders keep events while the server is away."""
REMEMBERED = 2 * OVERLAP
"""How long an event is known after it came last. Kubernetes tries again every five minutes."""
REPLAY = timedelta(hours=1)
"""How far back a new process reads at most."""
PAGE = 50

logger = get_logger("exporter")


@dataclass
class Outage:
    """Logs when something fails and when it works again, once each."""

    what: str
    failing: bool = False

    def failed(self, error: BaseException) -> None:
        """Note a failure."""
        if not self.failing:
            reason = str(error) or type(error).__name__
            logger.warning("%s: %s; trying again until it succeeds", self.what, reason)
        self.failing = True

    def ended(self) -> None:
        """Note a success."""
        if self.failing:
            logger.warning("%s: works again", self.what)
        self.failing = False


@dataclass(slots=True)
class _Seen:
    """An event that has been counted."""

    occurred: datetime
    came: datetime
    """When it came last."""
    is_awaited: bool
    """It was stored, and the stream has not brought it."""


@dataclass
class Listening:
    """Brings each event to `counting` once."""

    client: PrefectClient
    counting: Counting
    position: str = ""
    """Variable of Prefect with the time up to which events have been scraped; "" for none."""
    settle_seconds: float = SETTLE_SECONDS
    first: datetime = field(default_factory=lambda: datetime.now(UTC))
    """Events that occurred before are not counted."""
    _seen: dict[UUID, _Seen] = field(default_factory=dict)
    _newest: datetime | None = None
    _scraped: datetime | None = None
    _stored: datetime | None = None

    def __post_init__(self) -> None:
        """Compare from the start on."""
        self._compared = self.first

    async def resume(self) -> None:
        """Start at the position that the process before this one stored."""
        if not self.position:
            return
        variable = await self.client.read_variable_by_name(self.position)
        if variable is None:
            return
        stored = datetime.fromisoformat(str(variable.value))
        after = stored + timedelta(microseconds=1)  # the event at this time was scraped
        self.first = min(max(after, self.first - REPLAY), self.first)
        self._stored, self._compared = stored, self.first

    async def forever(self) -> None:
        """Listen to the stream, and connect again when it ends."""
        outage = Outage("The event stream of the Prefect API is not available")
        pause = 1.0
        while True:
            try:
                async with get_events_subscriber(wanted(), reconnection_attempts=0) as events:
                    outage.ended()
                    async for event in events:
                        pause = 1.0
                        self._take(event, "stream")
            except Exception as error:  # of websockets, of the system, of authentication
                outage.failed(error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 15.0)

    async def compare(self) -> None:
        """Read the stored events if the stream has not brought all. Raises httpx.HTTPError."""
        until = datetime.now(UTC) - timedelta(seconds=self.settle_seconds)
        since = max(self.first, self._compared - OVERLAP)
        if until <= since:
            return
        page = await self._stored_events(since, until, limit=1)
        if page["total"] > sum(since <= seen.occurred <= until for seen in self._seen.values()):
            page = await self._stored_events(since, until, limit=PAGE)
            while True:
                for each in page["events"]:
                    self._take(Event.model_validate(each), "stored")
                if not page["next_page"]:
                    break
                page = await self._next_page(page["next_page"])
        self._compared = until
        oldest = until - REMEMBERED
        self._seen = {
            key: seen for key, seen in self._seen.items() if max(seen.occurred, seen.came) >= oldest
        }

    def scraped(self) -> None:
        """Note that all events up to now were in a scrape."""
        self._scraped = self._newest

    async def store(self) -> None:
        """Store the position, if it has changed. Raises httpx.HTTPError."""
        if not self.position or self._scraped is None or self._scraped == self._stored:
            return
        value = self._scraped.isoformat()
        try:
            await self.client.update_variable(VariableUpdate(name=self.position, value=value))
        except httpx.HTTPStatusError as error:  # new, or someone has deleted it
            if error.response.status_code != httpx.codes.NOT_FOUND:
                raise
            await self.client.create_variable(VariableCreate(name=self.position, value=value))
        self._stored = self._scraped

    def _take(self, event: Event, source: str) -> None:
        occurred = event.occurred
        if occurred < self.first:
            return
        series, now = self.counting.series, datetime.now(UTC)
        seen = self._seen.get(event.id)
        is_live = source == "stream" and (seen is None or seen.is_awaited)
        if is_live and event.event.startswith(RUN):
            # Of states only, which occur when the server accepts them, and not of one that the
            # stream has brought before, as a new connection brings the last minute again.
            delay = (now - occurred).total_seconds()
            series.set(families.EVENT_DELAY, (), max(delay, 0.0))
        if seen is not None:
            seen.came, seen.is_awaited = now, seen.is_awaited and not is_live
            return
        self._seen[event.id] = _Seen(occurred, now, is_awaited=source == "stored")
        # A sender's clock may be ahead: what occurs meanwhile must not count as scraped.
        reached = min(occurred, now)
        self._newest = max(self._newest or reached, reached)
        series.add(families.EVENTS, (source,))
        self.counting.count(event)

    async def _stored_events(self, since: datetime, until: datetime, limit: int) -> dict[str, Any]:
        found = wanted()
        found.occurred = EventOccurredFilter.model_validate({"since": since, "until": until})
        found.order = EventOrder.ASC
        body = {"filter": found.model_dump(mode="json"), "limit": limit}
        response = await self.client.request("POST", "/events/filter", json=body)
        response.raise_for_status()
        page: dict[str, Any] = response.json()
        return page

    async def _next_page(self, url: str) -> dict[str, Any]:
        # Not its host, which may be that of the server behind a proxy.
        params = {key: values[0] for key, values in parse_qs(urlsplit(url).query).items()}
        path = "/events/filter/next"
        response = await self.client.request("GET", path, params=params)  # type: ignore[arg-type]
        response.raise_for_status()
        page: dict[str, Any] = response.json()
        return page
