"""What no event says, read from the API: a number of requests that does not depend on the runs.

Per refresh: one for the work pools, one for the global concurrency limits, at most four per work
pool, and two for the times of up to 200 runs each. The flows and their deployments, up to 200 per
request, are read at the start, every ten minutes, and a minute after a deployment has changed; so
are the automations, and the work queues of each pool. For the last successes of deployments that
are new here there are up to ten requests per refresh.
"""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import TERMINAL_STATES, StateType

from prefect_hamilton.exporter import families
from prefect_hamilton.exporter.counting import Counting, state_label
from prefect_hamilton.exporter.series import Labels

PAGE = 200
OVERLAP = 20
"""Objects that two pages share. If no more are deleted between them, none is missed."""
Key = TypeVar("Key")
LOOK_BACK = timedelta(days=90)  # of runs that have not ended
DEPLOYMENTS_SECONDS = 600.0
CHANGED_DEPLOYMENTS_SECONDS = 60.0
PAUSES_PER_LISTING = 20  # a listing that takes 10 seconds is repeated after 200 at the earliest
SUCCESS_REQUESTS = 10
"""Requests per refresh for the last successes of deployments, 200 deployments and runs each."""
NOT_ENDED = [state.value for state in StateType if state not in TERMINAL_STATES]
DUE = ("Scheduled", "Late")
"""Names of states of a run that waits for a worker. The server may not have called it late yet."""
PENDING = ("Pending", "Submitting", "InfrastructurePending")
"""Names of states of the type PENDING."""
NO_POOL = ""


@dataclass
class Refresh:
    """Reads the gauges."""

    client: PrefectClient
    counting: Counting
    changed_deployments_seconds: float = CHANGED_DEPLOYMENTS_SECONDS
    _listed: float = float("-inf")
    _listing_seconds: float = 0.0
    _deployments: dict[str, Labels] = field(default_factory=dict)
    """Those listed last, by id."""
    _unread: dict[str, Labels] = field(default_factory=dict)
    """Those of them whose last success has not been asked for."""

    async def all(self) -> None:
        """Read every gauge once. Raises httpx.HTTPError."""
        began = datetime.now(UTC)
        pools = await self._post("work_pools/filter", limit=PAGE)
        await self._read_runs([pool["name"] for pool in pools])
        await self._read_pools(pools)
        if len(pools) < PAGE:
            self._drop_pools({pool["name"] for pool in pools}, began)
        await self._read_limits()
        await self._look_up()
        await self._list_names({pool["name"] for pool in pools}, began)
        await self._read_last_successes()

    async def _read_runs(self, pools: list[str]) -> None:
        total = await self._states({})
        found: dict[Labels, float] = {}
        late: dict[Labels, float] = {}
        pending: dict[Labels, float] = {}
        for pool in pools:
            states = await self._states({"work_pools": {"name": {"any_": [pool]}}})
            for state, count in states.items():
                found[pool, state] = count
                total[state] = total.get(state, 0) - count
            late[pool,] = pending[pool,] = 0.0
            if any(states.get(name) for name in DUE):
                late[pool,] = await self._longest(pool, {"name": {"any_": list(DUE)}}, _due)
            if any(states.get(name) for name in PENDING):
                pending[pool,] = await self._longest(
                    pool, {"type": {"any_": ["PENDING"]}}, _entered
                )
        found |= {(NO_POOL, state): count for state, count in total.items() if count > 0}
        series = self.counting.series
        series.replace(families.FLOW_RUNS, found)
        series.replace(families.OLDEST_LATE, late)
        series.replace(families.OLDEST_PENDING, pending)

    async def _states(self, of: Mapping[str, Any]) -> dict[str, float]:
        """Count the runs that are due and have not ended, by state."""
        now = datetime.now(UTC)
        (history,) = await self._post(
            "flow_runs/history",
            history_start=(now - LOOK_BACK).isoformat(),
            history_end=now.isoformat(),
            history_interval_seconds=LOOK_BACK.total_seconds(),
            flow_runs={"state": {"type": {"any_": NOT_ENDED}}},
            **of,
        )
        counts: dict[str, float] = {}
        for state in history["states"]:
            label = state_label(state["state_name"], state["state_type"])
            counts[label] = counts.get(label, 0) + state["count_runs"]
        return counts

    async def _longest(
        self, pool: str, state: Mapping[str, Any], since: Callable[[dict[str, Any]], datetime]
    ) -> float:
        """Return for how many seconds, at most, one of the first runs has been in a state."""
        runs = await self._post(
            "flow_runs/filter",
            flow_runs={"state": state},
            work_pools={"name": {"any_": [pool]}},
            sort="EXPECTED_START_TIME_ASC",
            limit=PAGE,
        )
        now = datetime.now(UTC)
        # Runs of schedules may be due in days.
        return max((0.0, *((now - since(run)).total_seconds() for run in runs)))

    async def _read_pools(self, pools: list[dict[str, Any]]) -> None:
        ready: dict[Labels, float] = {}
        ages: dict[Labels, float] = {}
        limits: dict[Labels, float] = {}
        for pool in pools:
            key: Labels = (pool["name"],)
            if not pool["is_paused"]:
                ready[key] = float(pool.get("status") == "READY")
            if pool["concurrency_limit"] is not None:
                limits[key] = pool["concurrency_limit"]
            path = f"work_pools/{quote(pool['name'], safe='')}/workers/filter"
            workers = await self._post(path, limit=PAGE)
            beats = [
                _time(each["last_heartbeat_time"])
                for each in workers
                if each["last_heartbeat_time"]
            ]
            if beats:
                ages[key] = max((datetime.now(UTC) - max(beats)).total_seconds(), 0.0)
        series = self.counting.series
        series.replace(families.POOL_READY, ready)
        series.replace(families.POOL_LIMIT, limits)
        series.replace(families.HEARTBEAT_AGE, ages)

    def _drop_pools(self, found: set[str], began: datetime) -> None:
        """Drop the series of all that are gone, but for those that appeared meanwhile."""
        kept = found | _forget(self.counting.pools, found, began) | {NO_POOL}
        self.counting.series.drop(lambda labels: labels.get("work_pool", NO_POOL) not in kept)

    async def _read_limits(self) -> None:
        slots: dict[Labels, float] = {}
        async for page in self._pages("v2/concurrency_limits/filter"):
            for limit in page:
                # Of a deployment, the limit has its id as its name, and a run may well fill it.
                if not limit["active"] or limit["name"].startswith("deployment:"):
                    continue
                slots[limit["name"], "used"] = limit["active_slots"]
                slots[limit["name"], "max"] = limit["limit"]
        self.counting.series.replace(families.SLOTS, slots)

    async def _look_up(self) -> None:
        """Observe the times of runs that their events did not tell."""
        delayed, ended = dict(self.counting.delayed), dict(self.counting.ended)
        series = self.counting.series
        for run in await self._runs(delayed):
            pool = delayed[UUID(run["id"])]
            seconds = _seconds(run, "expected_start_time", "start_time")
            series.observe(families.START_DELAY, (pool,), seconds)
        for run in await self._runs(ended):
            if run["start_time"] and run["end_time"]:  # others never started
                labels = ended[UUID(run["id"])]
                series.observe(families.DURATION, labels, _seconds(run, "start_time", "end_time"))
        for run_id in delayed:
            self.counting.delayed.pop(run_id, None)
        for run_id in ended:
            self.counting.ended.pop(run_id, None)

    async def _runs(self, ids: Mapping[UUID, object]) -> list[dict[str, Any]]:
        if not ids:
            return []
        names = [str(each) for each in ids]
        runs = await self._post("flow_runs/filter", flow_runs={"id": {"any_": names}}, limit=PAGE)
        return [run for run in runs if run["start_time"]]

    async def _list_names(self, pools: set[str], began: datetime) -> None:
        """Drop the series of all that is gone, if it is time to look for it."""
        waited = time.monotonic() - self._listed
        pause = max(self.changed_deployments_seconds, PAUSES_PER_LISTING * self._listing_seconds)
        if waited < (pause if self.counting.deployments_changed else DEPLOYMENTS_SECONDS):
            return
        self.counting.deployments_changed, listed_from = False, time.monotonic()
        try:
            await self._list_deployments(began)
            await self._list_automations(began)
            await self._list_queues(pools, began)
        except Exception:
            self.counting.deployments_changed = True  # again at the next refresh
            raise
        self._listed, self._listing_seconds = listed_from, time.monotonic() - listed_from

    async def _list_deployments(self, began: datetime) -> None:
        found: dict[str, Labels] = {}
        kept: set[Labels] = {("", "")}
        active: dict[Labels, float] = {}
        async for flows in self._pages("flows/filter"):
            names = {flow["id"]: flow["name"] for flow in flows}
            kept |= {(name, "") for name in names.values()}
            async for each in self._deployments_of(list(names)):
                key = found[each["id"]] = (names[each["flow_id"]], each["name"])
                if schedules := each["schedules"]:
                    is_on = not each["paused"] and any(item["active"] for item in schedules)
                    active[key] = float(is_on)
        self.counting.series.replace(families.SCHEDULE_ACTIVE, active)
        kept |= set(found.values())
        kept |= _forget(self.counting.deployments, kept, began)
        self.counting.series.drop(
            lambda labels: "flow" in labels and (labels["flow"], labels["deployment"]) not in kept
        )
        self._unread = {
            id_: key
            for id_, key in found.items()
            if id_ in self._unread or id_ not in self._deployments
        }
        self._deployments = found

    async def _deployments_of(self, flows: list[str]) -> AsyncIterator[dict[str, Any]]:
        """Yield the deployments of the flows with these ids.

        The API sorts deployments by name only. Where those of several flows share a name, a
        database may sort them differently for each page, and pages miss some. So this asks for
        fewer flows until one page has all, or for one flow, whose deployments share no name.
        """
        waiting = [flows]
        while waiting:
            some = waiting.pop()
            of_some = {"flows": {"id": {"any_": some}}}
            page = await self._post("deployments/filter", limit=PAGE, **of_some)
            if len(page) < PAGE:
                for each in page:
                    yield each
            elif len(some) > 1:
                half = len(some) // 2
                waiting += [some[:half], some[half:]]
            else:
                async for page in self._pages("deployments/filter", **of_some):
                    for each in page:
                        yield each

    async def _list_automations(self, began: datetime) -> None:
        if not self.counting.automations:
            return
        # Automations may share a name. What is sorted by name has each name in the same places.
        kept = {each["name"] async for page in self._pages("automations/filter") for each in page}
        kept |= _forget(self.counting.automations, kept, began)
        self.counting.series.drop(
            lambda labels: "automation" in labels and labels["automation"] not in kept
        )

    async def _list_queues(self, pools: set[str], began: datetime) -> None:
        """Drop the series of work queues that are gone; those of pools go with their pool."""
        asked = {pool for pool, _ in self.counting.queues} & pools
        kept: set[Labels] = {(pool, "") for pool in asked}
        for pool in asked:
            async for page in self._pages(f"work_pools/{quote(pool, safe='')}/queues/filter"):
                kept |= {(pool, queue["name"]) for queue in page}
        kept |= _forget(self.counting.queues, kept, began)

        def is_gone(labels: dict[str, str]) -> bool:
            pool, queue = labels.get("work_pool"), labels.get("work_queue")
            return queue is not None and pool in asked and (pool, queue) not in kept

        self.counting.series.drop(is_gone)

    async def _read_last_successes(self) -> None:
        """Read when deployments succeeded before this process began, of some per refresh."""
        for _ in range(SUCCESS_REQUESTS):
            if not self._unread:
                return
            some = dict(islice(self._unread.items(), PAGE))
            runs = await self._post(
                "flow_runs/filter",
                flow_runs={
                    "deployment_id": {"any_": list(some)},
                    "state": {"type": {"any_": ["COMPLETED"]}},
                    "end_time": {"is_null_": False},
                },
                sort="END_TIME_DESC",
                limit=PAGE,
            )
            for run in runs:  # the newest of each deployment first
                if key := some.pop(run["deployment_id"], None):
                    ended = _time(run["end_time"]).timestamp()
                    self.counting.series.raise_to(families.LAST_SUCCESS, key, ended)
                    self._unread.pop(run["deployment_id"], None)
            if len(runs) < PAGE:  # the others have never succeeded
                for id_ in some:
                    self._unread.pop(id_, None)

    async def _pages(self, path: str, **body: Any) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield all objects in pages; some of them twice.

        Only for what the API sorts by something that no two of the objects share, such as a name.
        """
        offset = 0
        while page := await self._post(path, limit=PAGE, offset=offset, **body):
            yield page
            offset += PAGE - OVERLAP
            if len(page) < PAGE:
                return

    async def _post(self, path: str, **body: Any) -> Any:
        response = await self.client.request("POST", f"/{path}", json=body)  # type: ignore[arg-type]
        response.raise_for_status()
        return response.json()


def _forget(seen: dict[Key, datetime], found: set[Key], began: datetime) -> set[Key]:
    """Forget what is gone; return what was seen after the listing began."""
    new = {key for key, time in seen.items() if time >= began}
    for key in set(seen) - found - new:
        del seen[key]
    return new


def _due(run: dict[str, Any]) -> datetime:
    return _time(run["expected_start_time"])


def _entered(run: dict[str, Any]) -> datetime:
    return _time(run["state"]["timestamp"])


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _seconds(run: Mapping[str, Any], start: str, end: str) -> float:
    return max((_time(run[end]) - _time(run[start])).total_seconds(), 0.0)
