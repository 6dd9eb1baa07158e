"""The worker of type `kubernetes` that the image runs instead of Prefect's."""

import sys
from typing import Any
from uuid import UUID

import anyio
import anyio.abc
import httpx
from kubernetes_asyncio.client import ApiClient, BatchV1Api, V1Job
from kubernetes_asyncio.client.exceptions import ApiException
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import InfrastructureError
from prefect.states import Pending, Submitting
from prefect.workers.base import _is_transient_api_error
from prefect_kubernetes.worker import (
    KubernetesWorker,
    KubernetesWorkerJobConfiguration,
    KubernetesWorkerResult,
)

from prefect_hamilton.states import propose, rescheduled, restore
from prefect_hamilton.worker import attempts, kubernetes, late, pod_security
from prefect_hamilton.worker.job import JobConfiguration
from prefect_hamilton.worker.sweep import LOCATION_LABEL, Sweep
from prefect_hamilton.worker.wake import Listening

ANSWER_SECONDS = 15
"""How long the API may take to answer a proposal before the client repeats it."""

PROPOSAL_SECONDS = 60
"""How long the worker tries to take a run up. Its next poll finds the run again."""

CONFLICT = 409


class NotWaitedForError(Exception):
    """The flow run does not wait for the attempt's Job."""


class RefusedError(Exception):
    """The pod of the flow run would break a rule of the operator; the text is a sentence."""


class Worker(Listening, KubernetesWorker):  # type: ignore[misc]
    """Creates exactly one Job for each attempt, and only while the flow run waits for it."""

    job_configuration = JobConfiguration

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._attempts: dict[UUID, UUID] = {}
        self._skip_late_after = late.limit()

    async def setup(self) -> None:
        """Prepare the worker: it also listens to events, and sweeps once a minute."""
        await super().setup()
        sweep = Sweep(self.client, self._work_pool_name, self._logger)
        self._run_beside(sweep.run_forever)

    async def _submit_run(self, flow_run: FlowRun) -> None:
        try:
            await super()._submit_run(flow_run)
        finally:
            self._attempts.pop(flow_run.id, None)

    async def _propose_pending_state(self, flow_run: FlowRun) -> bool:
        """Take the run up, if it is in the state in which it was found and not too late."""
        if flow_run.state is None:
            return bool(await super()._propose_pending_state(flow_run))
        after = self._skip_late_after
        skipped = after and late.skipped(flow_run, after)
        answer = await self._propose(flow_run, flow_run.state, skipped or Pending())
        if answer is None or skipped:
            return False
        self._attempts[flow_run.id] = answer.id
        return True

    async def _propose(
        self, flow_run: FlowRun, found: State[Any], wanted: State[Any]
    ) -> State[Any] | None:
        """Propose a state for a run that is in the state `found`; None, and a log, if refused."""
        logger = self.get_flow_run_logger(flow_run)
        try:
            with anyio.fail_after(PROPOSAL_SECONDS):
                answer = await propose(
                    self.client,
                    flow_run.id,
                    wanted,
                    found.id,
                    timeout=ANSWER_SECONDS,
                )
        except (httpx.HTTPError, TimeoutError) as error:
            logger.warning(
                "Flow run '%s' was not taken up, because the API did not answer: %s: %s",
                flow_run.id,
                type(error).__name__,
                error,
            )
            return None
        if answer.state is None or answer.state.type is not wanted.type:
            logger.info("Flow run '%s' was not taken up: %s", flow_run.id, answer.details)
            return None
        if not answer.state.is_pending():
            logger.warning("Flow run '%s' is skipped: %s", flow_run.id, wanted.message)
        return answer.state

    async def _propose_submitting_state(self, flow_run: FlowRun) -> None:
        attempt = self._attempts.get(flow_run.id)
        if attempt is None:
            await super()._propose_submitting_state(flow_run)
            return
        try:
            await propose(self.client, flow_run.id, Submitting(), attempt, timeout=ANSWER_SECONDS)
        except httpx.HTTPError:
            self._logger.debug("Flow run was not set to Submitting.", exc_info=True)

    async def _propose_crashed_state(
        self, flow_run: FlowRun, message: str, client: PrefectClient | None = None
    ) -> None:
        """Crash the run; reschedule it instead if an API was unavailable.

        Prefect calls this while it handles the error that kept it from making the Job.
        """
        attempt = self._attempts.get(flow_run.id)
        if attempt is None or not _is_outage(sys.exception()):
            await super()._propose_crashed_state(flow_run, message, client)
            return
        try:
            states = await self.client.read_flow_run_states(flow_run.id)
            if attempts.is_waited_for(states, attempt):
                waits: State[Any] = rescheduled(f"Waits for another try. {message}")
                await propose(self.client, flow_run.id, waits, states[-1].id)
        except httpx.HTTPError:
            # The sweep finds the run when the API is back.
            self._logger.warning("Flow run could not be rescheduled.", exc_info=True)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: KubernetesWorkerJobConfiguration,
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> KubernetesWorkerResult:
        """Create the Job of the attempt, unless the state of the run has changed."""
        attempt = self._attempts.get(flow_run.id)
        if attempt is not None and not await self._is_waited_for(flow_run, attempt):
            if task_status is not None:
                task_status.started(NotWaitedForError())
            return KubernetesWorkerResult(identifier="", status_code=0)
        if reason := pod_security.refusal(configuration.job_manifest["spec"]["template"]["spec"]):
            self.get_flow_run_logger(flow_run).error(reason)
            if task_status is not None:
                task_status.started(RefusedError(reason))
            await self._propose_crashed_state(flow_run, reason)
            return KubernetesWorkerResult(identifier="", status_code=0)
        if attempt is not None:
            await self._note_location(flow_run, configuration)
            attempts.mark(configuration.job_manifest, attempt)
        return await super().run(flow_run, configuration, task_status)

    async def _is_waited_for(self, flow_run: FlowRun, attempt: UUID) -> bool:
        """Whether to create the Job; restores the final state that a delayed Pending replaced."""
        states = await self.client.read_flow_run_states(flow_run.id)
        if attempts.is_waited_for(states, attempt):
            return True
        self.get_flow_run_logger(flow_run).warning(
            "No Job is created for flow run '%s': it no longer waits for this worker.",
            flow_run.id,
        )
        earned = attempts.ended_before(states, attempt)
        if earned is not None and states[-1].is_pending():
            await restore(self.client, flow_run.id, earned)
        return False

    async def _note_location(
        self, flow_run: FlowRun, configuration: KubernetesWorkerJobConfiguration
    ) -> None:
        """Record where the run's Jobs are, for workers that look for runs without a Job."""
        async with self._get_configured_kubernetes_client(configuration) as client:
            cluster = kubernetes.cluster_of(client)
        await self.client.update_flow_run_labels(
            flow_run.id, {LOCATION_LABEL: f"{cluster}/{configuration.namespace}"}
        )

    async def _create_job(
        self, configuration: KubernetesWorkerJobConfiguration, client: ApiClient
    ) -> V1Job:
        """Create the Job. It may exist already if the response to an earlier request was lost."""
        try:
            job: V1Job = await super()._create_job(configuration, client)
        except InfrastructureError as error:
            cause = error.__cause__
            wanted = configuration.job_manifest["metadata"]
            if not (isinstance(cause, ApiException) and cause.status == CONFLICT):
                raise
            job = await BatchV1Api(client).read_namespaced_job(
                wanted["name"], configuration.namespace
            )
            if attempts.of_job(job.metadata.labels) != attempts.of_job(wanted["labels"]):
                raise
        return job


def _is_outage(error: BaseException | None) -> bool:
    """Whether the error means that the API of Prefect or Kubernetes was unavailable."""
    if isinstance(error, httpx.HTTPError):
        return _is_transient_api_error(error)
    cause = error.__cause__ if isinstance(error, InfrastructureError) else error
    return kubernetes.is_outage(cause)
