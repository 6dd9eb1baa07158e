"""Find flow runs that are Pending or Running, or between two tries of their flow, without a Job.

A worker that was killed after it set Pending and before it created the Job leaves such a run, and
so does a Job that was deleted while no worker was running. Several workers may find the same run:
each names the state that it saw, and the server accepts the first.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from logging import Logger, LoggerAdapter
from typing import Any
from uuid import UUID

import anyio
from kubernetes_asyncio.client import ApiClient, V1Job
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    Operator,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect_kubernetes.observer import _get_kubernetes_client
from prefect_kubernetes.settings import KubernetesSettings

from prefect_hamilton.states import (
    GIVEN_UP,
    beginning,
    claim_attempt,
    due_before,
    propose,
    rescheduled,
)
from prefect_hamilton.worker import attempts, claim, env_secret, kubernetes, takers, verdicts

LOCATION_LABEL = "prefect-hamilton.jobs"
"""Label of a flow run: cluster and namespace of its Jobs."""

INTERVAL_SECONDS = 60
PAGE = 200
GRACE_SECONDS = 120
"""How long a run may be without a Job, because a worker may be slow to create it."""

NO_JOB = "No Job was created for it within {} seconds."
ABANDONED = "The worker's pod that took it up ended before it created a Job."
NOT_RETRIED = "Its Job ended or was deleted while its flow waited for a retry."
GONE = "Its Job has ended or no longer exists, and the end of the flow was not reported."


class Sweep:
    """Looks for such runs in one pool; remembers since when each has been without a Job."""

    def __init__(
        self,
        client: PrefectClient,
        pool: str,
        logger: Logger | LoggerAdapter[Any],
        *,
        grace_seconds: float = GRACE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._pool = pool
        self._logger = logger
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._missing_since: dict[UUID, float] = {}

    async def run_forever(self, scope: anyio.CancelScope) -> None:
        """Sweep now, and once a minute until the scope is cancelled."""
        with scope:
            while True:
                try:
                    await self.sweep()
                except Exception as error:
                    self._logger.warning(
                        "Could not look for flow runs without a Job: %s: %s",
                        type(error).__name__,
                        error,
                    )
                await asyncio.sleep(INTERVAL_SECONDS)

    async def sweep(self) -> None:
        """Settle the runs that have been without a Job for the grace.

        Without it, those that a pod took up which is gone.
        """
        namespaces: set[str] = set(KubernetesSettings().observer.namespaces or ())
        client = await _get_kubernetes_client()
        try:
            await self._sweep(client, namespaces)
        finally:
            await client.close()

    async def _sweep(self, client: ApiClient, namespaces: set[str]) -> None:
        cluster = kubernetes.cluster_of(client)
        jobs = await kubernetes.jobs_of_flow_runs(client, namespaces)
        if KubernetesSettings().worker.store_env_as_secret:
            jobs = [job for job in jobs if not await self._deleted(client, job)]
        runs = [
            run
            for run in await self._runs_without(jobs)
            if _is_seen(run, cluster, namespaces) and run.state is not None
        ]
        now = self._clock()
        self._missing_since = {
            run.state.id: self._missing_since.get(run.state.id, now) for run in runs if run.state
        }
        for run in runs:
            if (state := run.state) is None:
                continue
            is_due = now - self._missing_since[state.id] >= self._grace_seconds
            try:
                if is_due:
                    await self._settle(run, state, await self._verdict(run, state, jobs, client))
                elif state.is_pending():
                    states = await self._client.read_flow_run_states(run.id)
                    if await self._is_abandoned(run, states, client, namespaces):
                        await self._settle(run, state, rescheduled(ABANDONED, due_before(states)))
            except Exception as error:
                # The others are looked at all the same.
                self._logger.warning(
                    "Could not settle flow run '%s', which has no Job: %s: %s",
                    run.name,
                    type(error).__name__,
                    error,
                )

    async def _is_abandoned(
        self, run: FlowRun, states: Sequence[State[Any]], client: ApiClient, namespaces: set[str]
    ) -> bool:
        """Whether who took the run up has ended before it created the attempt's Job.

        The attempt is then given up: a pod that starts after all does not execute the run.
        """
        began = beginning(states)
        if began is None or not await takers.is_gone(client, states[began]):
            return False
        # With its last requests it may have gone on since the Jobs and the runs were listed.
        selector = f"{kubernetes.FLOW_RUN_LABEL}={run.id}"
        jobs = await kubernetes.jobs_of_flow_runs(client, namespaces, selector)
        now = await self._client.read_flow_run(run.id)
        is_same = now.state is not None and run.state is not None and now.state.id == run.state.id
        is_seen = _is_seen(now, kubernetes.cluster_of(client), namespaces)
        if not (is_same and is_seen and _job_of(str(states[began].id), jobs) is None):
            return False
        return await claim_attempt(self._client, run.id, states[began].id, GIVEN_UP) == GIVEN_UP

    async def _deleted(self, client: ApiClient, job: V1Job) -> bool:
        """Delete a Job whose worker was killed before it created the Job's Secret.

        Returns whether it was.
        """
        age = datetime.now(UTC) - job.metadata.creation_timestamp
        is_new = age.total_seconds() < self._grace_seconds
        if is_new or not await env_secret.is_missing(client, job):
            return False
        self._logger.warning("Job '%s' has no Secret with its environment.", job.metadata.name)
        return await claim.delete(client, job)

    async def _runs_without(self, jobs: Iterable[V1Job]) -> list[FlowRun]:
        """Return the pool's runs that wait or run and have no Job that has not finished."""
        busy = {run for job in jobs if not kubernetes.is_finished(job) and (run := _run_of(job))}
        kinds = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])
        wanted = FlowRunFilter(
            state=FlowRunFilterState(
                type=kinds,
                name=FlowRunFilterStateName(any_=["AwaitingRetry"]),
                operator=Operator.or_,  # type: ignore[call-arg]  # of its mixin
            ),
            id=FlowRunFilterId(not_any_=sorted(busy)) if busy else None,
        )
        of_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[self._pool]))
        found: list[FlowRun] = []
        while True:
            page = await self._client.read_flow_runs(
                flow_run_filter=wanted, work_pool_filter=of_pool, limit=PAGE, offset=len(found)
            )
            found += page
            if len(page) < PAGE:
                return [run for run in found if not _waits_for_a_worker(run)]

    async def _settle(self, run: FlowRun, state: State[Any], verdict: State[Any]) -> None:
        answer = await propose(self._client, run.id, verdict, state.id)
        self._logger.warning(
            "Flow run '%s' was %s without a Job and is now %s: %s",
            run.name,
            state.name,
            answer.state.name if answer.state else "left alone",
            verdict.message,
        )

    async def _verdict(
        self, run: FlowRun, state: State[Any], jobs: Iterable[V1Job], client: ApiClient
    ) -> State[Any]:
        """Return the next state of a run: it is rescheduled if the flow has not started."""
        if state.is_scheduled():
            return rescheduled(NOT_RETRIED, state.state_details.scheduled_time)
        states = await self._client.read_flow_run_states(run.id)
        job = _job_of(str(attempts.latest(states)), jobs)
        if state.is_running():
            return verdicts.of_started(job, GONE)
        if job is None:
            return rescheduled(NO_JOB.format(round(self._grace_seconds)), due_before(states))
        where = (job.metadata.name, job.metadata.namespace)
        return verdicts.of_unstarted(states, job, await kubernetes.pods_of_job(client, *where))


def _run_of(job: V1Job) -> UUID | None:
    try:
        return UUID(job.metadata.labels[kubernetes.FLOW_RUN_LABEL])
    except ValueError:
        return None  # Somebody else's Job.


def _waits_for_a_worker(run: FlowRun) -> bool:
    """Whether it is scheduled, and not to be retried by the process that ran it."""
    is_scheduled = run.state is not None and run.state.is_scheduled()
    return is_scheduled and run.empirical_policy.retry_type != "in_process"


def _job_of(attempt: str, jobs: Iterable[V1Job]) -> V1Job | None:
    return next((job for job in jobs if attempts.of_job(job.metadata.labels) == attempt), None)


def _is_seen(run: FlowRun, cluster: str, namespaces: set[str]) -> bool:
    """Whether the run's Jobs, if there are any, are where this worker looks."""
    location = run.labels.get(LOCATION_LABEL)
    if location is None:
        # The worker that took it up writes the label before it makes a Job.
        waits = run.state is not None and run.state.is_pending()
        return waits and run.infrastructure_pid is None and run.deployment_id is not None
    its_cluster, _, namespace = str(location).partition("/")
    return its_cluster == cluster and (not namespaces or namespace in namespaces)
