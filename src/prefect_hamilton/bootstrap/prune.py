"""Removes what the bootstrap created and Git no longer names.

A deployment with a run in flight is paused, and deleted when no run of it is in flight.
"""

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from prefect_hamilton.bootstrap.changes import Change
from prefect_hamilton.bootstrap.connection import every
from prefect_hamilton.bootstrap.created import FILES, Created, Entry
from prefect_hamilton.bootstrap.objects import (
    AUTOMATION,
    DEPLOYMENT,
    REMOVED,
    WORK_QUEUE,
    Found,
    Kind,
    kind_of,
)
from prefect_hamilton.bootstrap.record import NoRecord
from prefect_hamilton.bootstrap.schedules import describe

NOT_ENDED = [state for state in StateType if state not in TERMINAL_STATES]


class Removal:
    """Removes objects of a record: those that are in scope.

    With `write` false, it only reports what would be removed.
    """

    def __init__(
        self,
        client: PrefectClient,
        created: Created,
        record: NoRecord,
        in_scope: Callable[[Entry], bool],
        *,
        write: bool,
    ) -> None:
        self._client = client
        self._created = created
        self._record = record
        self._in_scope = in_scope
        self._in_flight = False
        self._write = write

    async def of_all_but(self, named: Collection[str]) -> AsyncIterator[Change]:
        """Remove what has none of these keys, and yield each change."""
        for entry in sorted(self._created, key=_order):
            if entry.key in named or not self._in_scope(entry):
                continue
            if change := await self._remove(entry):
                yield change

    async def _remove(self, entry: Entry) -> Change | None:
        kind = kind_of(self._client, entry.kind)
        found = await kind.find_recorded(entry.name, entry.id)
        if found is None:  # gone, or another one, which a person made, has its name
            self._forget(entry)
            return None
        if not entry.created:
            self._forget(entry)
            note = "no longer in Git, but not created by the bootstrap"
            return Change("kept", entry.kind, entry.name, note)
        # `prefect deploy` writes over what a person changes in a deployment.
        of_prefect_yaml = entry.kind == DEPLOYMENT and entry.source != FILES
        if not (of_prefect_yaml or self._record.is_as_written(entry.key, found.fields)):
            return Change("kept", entry.kind, entry.name, "no longer in Git, but changed by hand")
        if entry.kind == DEPLOYMENT:
            return await self._end(kind, entry, found)
        if entry.kind != AUTOMATION and self._in_flight:
            note = "no longer in Git: deleted when a later bootstrap finds no run in flight"
            return Change("kept", entry.kind, entry.name, note)
        if entry.kind == WORK_QUEUE and (users := await self._users(found.id)):
            note = f"no longer in Git, but {users}: give them another queue"
            return Change("kept", entry.kind, entry.name, note)
        if self._write:
            await kind.delete(entry.name, found)
        self._forget(entry)
        return Change("removed", entry.kind, entry.name)

    def _forget(self, entry: Entry) -> None:
        self._created.drop(entry)
        self._record.removed(entry.key)

    async def _end(self, kind: Kind, entry: Entry, found: Found) -> Change:
        """Delete a deployment; if a run of it is in flight, only see to it that no other starts."""
        deployment: DeploymentResponse = found.more
        if self._write:
            # Recorded first: if this ends here, the pause must not be taken for that of a person.
            self._created.put(entry.model_copy(update={"ending": True}))
            await self._created.save()
            await self._stop_starting(deployment)
        in_flight = [run for run in await self._runs(deployment) if _has_begun(run)]
        self._in_flight = self._in_flight or bool(in_flight)
        parts = tuple(f"- schedule {describe(each)}" for each in deployment.schedules)
        if in_flight and (self._write or entry.ending):
            note = f"{_number(in_flight)} in flight: deleted when a later bootstrap finds none"
            return Change("ending", entry.kind, entry.name, note)
        if self._write:
            await kind.delete(entry.name, found)
        self._forget(entry)
        differences = (f"after {_number(in_flight)} in flight",) if in_flight else ()
        return Change("removed", entry.kind, entry.name, differences=differences, parts=parts)

    async def _stop_starting(self, deployment: DeploymentResponse) -> None:
        """Pause the deployment; its schedules, triggers and runs that have not started go."""
        client = self._client
        await client.pause_deployment(deployment.id)
        await client.delete_resource_owned_automations(f"prefect.deployment.{deployment.id}")
        for schedule in deployment.schedules:
            with suppress(ObjectNotFound):
                await client.delete_deployment_schedule(deployment.id, schedule.id)
        for run in await self._runs(deployment):
            if not _has_begun(run):
                with suppress(ObjectNotFound):
                    await client.delete_flow_run(run.id)

    async def _users(self, queue: UUID) -> str:
        """Return what is in a queue, and would have none without it; "" if nothing is."""
        not_ended = FlowRunFilterState(type=FlowRunFilterStateType(any_=NOT_ENDED))
        found = []
        for what, more in (
            ("deployments", {}),
            ("flow_runs", {"flow_runs": FlowRunFilter(state=not_ended).model_dump(mode="json")}),
        ):
            body = {"work_pool_queues": {"id": {"any_": [str(queue)]}}, **more}
            response = await self._client.request("POST", f"/{what}/count", json=body)  # type: ignore[arg-type]
            if number := response.raise_for_status().json():
                found.append(f"{number} {what.replace('_', ' ')}")
        return f"{' and '.join(found)} use it" if found else ""

    async def _runs(self, deployment: DeploymentResponse) -> list[FlowRun]:
        """Return the deployment's runs that have not ended."""
        of_deployment = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=NOT_ENDED)),
        )
        runs = every(self._client.read_flow_runs, flow_run_filter=of_deployment)
        return [run async for run in runs]


def _order(entry: Entry) -> tuple[int, str]:
    rank = REMOVED.index(entry.kind) if entry.kind in REMOVED else len(REMOVED)
    return rank, entry.name


def _has_begun(run: FlowRun) -> bool:
    """Whether a run is in flight; one that is scheduled to be tried again is."""
    return run.state_type != StateType.SCHEDULED or run.run_count > 0


def _number(runs: Collection[FlowRun]) -> str:
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
