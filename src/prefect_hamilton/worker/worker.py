"""The worker of type `kubernetes` that the image runs instead of Prefect's."""

import asyncio
from typing import Any
from uuid import UUID

import anyio.abc
import httpx
from kubernetes_asyncio.client import ApiClient, BatchV1Api, V1Job, V1Pod
from kubernetes_asyncio.client.exceptions import ApiException
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.exceptions import InfrastructureError
from prefect.states import Submitting
from prefect_kubernetes.worker import (
    KubernetesWorker,
    KubernetesWorkerJobConfiguration,
    KubernetesWorkerResult,
)
from tenacity import AsyncRetrying, retry_if_not_result, stop_after_delay, wait_fixed

from prefect_hamilton.states import GIVEN_UP, claim_attempt, propose, restore
from prefect_hamilton.worker import attempts, env_secret, kubernetes, pod_security, standby, takers
from prefect_hamilton.worker.claim import WithdrawnError
from prefect_hamilton.worker.job import JobConfiguration
from prefect_hamilton.worker.metrics import Metrics
from prefect_hamilton.worker.reserve import Reserve, unfit
from prefect_hamilton.worker.sweep import LOCATION_LABEL, Sweep
from prefect_hamilton.worker.taking_up import ANSWER_SECONDS, TakingUp
from prefect_hamilton.worker.wake import Listening

JobsAndPods = tuple[list[V1Job], list[V1Pod]]

OUT_OF_TIME = "Its pod was ended after {} seconds, which is its active_deadline_seconds."

END_SECONDS = 60
"""How long the pod of a former attempt may take to end; one on a lost node does not end."""


class NotWaitedForError(Exception):
    """The flow run does not wait for the attempt's Job."""


class RefusedError(Exception):
    """The flow run gets no pod by a rule of the operator; the text is a sentence."""


class Worker(Listening, TakingUp, KubernetesWorker):  # type: ignore[misc]
    """Creates exactly one Job for each attempt, and only while the flow run waits for it."""

    job_configuration = JobConfiguration

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reserve: Reserve | None = None
        self._metrics = Metrics(self._work_pool_name)
        self._cluster: str | None = None
        """Name of the worker's own cluster, as soon as it is known."""

    async def setup(self) -> None:
        """Prepare the worker: it listens to events and sweeps once a minute."""
        await super().setup()
        self._exit_stack.enter_context(self._metrics.served())
        sweep = Sweep(self.client, self._work_pool_name, self._logger)
        self._run_beside(sweep.run_forever)

    async def _initialize_after_sync(self) -> None:
        """Begin to keep standby pods. Prefect calls this also when the API is back."""
        await super()._initialize_after_sync()
        settings = standby.settings()
        if settings.count and self._reserve is None and self._work_pool is not None:
            self._reserve = Reserve(
                settings,
                standby.group(self.work_pool.id, self.name),
                self.name,
                clients=self._get_configured_kubernetes_client,
                render=self._standby_configuration,
                is_busy=lambda: bool(self._submitting_flow_run_ids),
                is_waited_for=self._is_waiting,
                count=self._metrics.set_standby_pods,
                logger=self._logger,
            )
            self._run_beside(self._reserve.run_forever)

    async def _standby_configuration(self) -> KubernetesWorkerJobConfiguration:
        """Return the configuration of a flow run that has no job variables."""
        configuration = await self.job_configuration.from_template_and_values(
            base_job_template=self.work_pool.base_job_template, values={}, client=self.client
        )
        nobody = FlowRun(id=UUID(int=0), name="standby", flow_id=UUID(int=0))
        configuration.prepare_for_flow_run(
            nobody, work_pool=self.work_pool, worker_name=self.name, worker_id=self.backend_id
        )
        return configuration

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        found: list[WorkerFlowRunResponse] = await super()._get_scheduled_flow_runs()
        self._metrics.note_poll()
        return found

    async def _submit_run(self, flow_run: FlowRun) -> None:
        """Submit a run. The limit is that of submissions: the Job goes on by itself."""
        try:
            await super()._submit_run(flow_run)
        finally:
            self._release_limit_slot(flow_run.id)

    def _pending(self) -> State[Any]:
        """Return the state that takes a run up; it says which process does, if it is in a pod."""
        this = takers.Taker.this()
        return this.pending() if this else super()._pending()

    async def _give_worker_labels_to_flow_run(self, flow_run_id: UUID) -> None:
        """Label a run with its worker, unless `_note_location` does so in the same request."""
        if flow_run_id not in self._attempts:
            await super()._give_worker_labels_to_flow_run(flow_run_id)

    async def _propose_submitting_state(self, flow_run: FlowRun) -> None:
        """Set Submitting. A run that begins in a standby pod has no Job to wait for."""
        attempt = self._attempts.get(flow_run.id)
        if attempt is None:
            await super()._propose_submitting_state(flow_run)
        elif self._reserve is None:
            await self._set_submitting(flow_run, attempt)

    async def _set_submitting(self, flow_run: FlowRun, attempt: UUID) -> None:
        try:
            await propose(self.client, flow_run.id, Submitting(), attempt, timeout=ANSWER_SECONDS)
        except httpx.HTTPError:
            self._logger.debug("Flow run was not set to Submitting.", exc_info=True)

    async def _propose_crashed_state(
        self, flow_run: FlowRun, message: str, client: PrefectClient | None = None
    ) -> None:
        self._metrics.count_failed()
        await super()._propose_crashed_state(flow_run, message, client)

    def _is_outage(self, error: BaseException | None) -> bool:
        """Whether the error means that the API of Prefect or Kubernetes was unavailable."""
        cause = error.__cause__ if isinstance(error, InfrastructureError) else error
        return super()._is_outage(error) or kubernetes.is_outage(cause)

    async def _give_up(self, flow_run: FlowRun, attempt: UUID) -> bool:
        """Claim the attempt: its Job may have been created although no answer came."""
        return await claim_attempt(self.client, flow_run.id, attempt, GIVEN_UP) == GIVEN_UP

    async def run(
        self,
        flow_run: FlowRun,
        configuration: KubernetesWorkerJobConfiguration,
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> KubernetesWorkerResult:
        """Create the Job of the attempt, unless the state of the run has changed."""
        attempt = self._attempts.get(flow_run.id)
        reason = pod_security.refusal(configuration.job_manifest["spec"]["template"]["spec"])
        if attempt is not None:
            states, _ = await asyncio.gather(
                self._states_if_waited_for(flow_run, attempt),
                self._note_location(flow_run, configuration),
            )
            if states is None:
                return _not_waited_for(task_status)
            former = attempts.before(states, attempt)
            if reason is None and former is not None:
                reason = await self._await_end(flow_run, former, configuration)
                if reason is None and not await self._is_waiting(flow_run.id, attempt):
                    return _not_waited_for(task_status)
        if reason is not None:
            self.get_flow_run_logger(flow_run).error(reason)
            if task_status is not None:
                task_status.started(RefusedError(reason))
            await self._propose_crashed_state(flow_run, reason)
            return KubernetesWorkerResult(identifier="", status_code=0)
        if attempt is not None:
            attempts.mark(configuration.job_manifest, flow_run.id, attempt)
            try:
                job = await self._claim_standby(flow_run, configuration, attempt)
            except NotWaitedForError:
                return _not_waited_for(task_status)
            if job is not None:
                pid = f"{job.metadata.namespace}:{job.metadata.name}"
                if task_status is not None:
                    task_status.started(pid)
                self._metrics.count_submitted(flow_run)
                return KubernetesWorkerResult(identifier=pid, status_code=0)
            if self._reserve is not None:
                await self._set_submitting(flow_run, attempt)
        result: KubernetesWorkerResult = await super().run(flow_run, configuration, task_status)
        self._metrics.count_submitted(flow_run)
        return result

    async def _claim_standby(
        self,
        flow_run: FlowRun,
        configuration: KubernetesWorkerJobConfiguration,
        attempt: UUID,
    ) -> V1Job | None:
        """Return the standby Job that executes the run; None if it gets a Job of its own.

        Raises NotWaitedForError if the run has changed meanwhile.
        """
        reserve = self._reserve
        if reserve is None or unfit(configuration):
            return None
        wanted = standby.with_references(configuration.job_manifest)
        assert wanted is not None  # noqa: S101  # or it would be unfit
        async with self._get_configured_kubernetes_client(configuration) as client:
            where = (configuration.namespace, attempt)
            while True:
                try:
                    job = await reserve.claims.claim(client, wanted, *where)
                    break
                except WithdrawnError as error:
                    # The end of the standby pod may have been taken for that of the run.
                    if await self._states_if_waited_for(flow_run, attempt) is None:
                        raise NotWaitedForError from error
        logger = self.get_flow_run_logger(flow_run)
        if job is None:
            logger.info("No standby pod fits or is ready: the flow run gets a new one.")
        else:
            reserve.note_claim()
            logger.info("The flow run begins in the standby pod of Job '%s'.", job.metadata.name)
        return job

    async def _is_waiting(self, flow_run_id: UUID, attempt: UUID) -> bool:
        """Whether a flow run waits for the Job of the attempt."""
        return attempts.is_waited_for(await self.client.read_flow_run_states(flow_run_id), attempt)

    async def _states_if_waited_for(
        self, flow_run: FlowRun, attempt: UUID
    ) -> list[State[Any]] | None:
        """Return the run's states if the Job is to be created.

        Restores the final state that a delayed Pending replaced.
        """
        states: list[State[Any]] = await self.client.read_flow_run_states(flow_run.id)
        if attempts.is_waited_for(states, attempt):
            return states
        self.get_flow_run_logger(flow_run).warning(
            "No Job is created for flow run '%s': it no longer waits for this worker.",
            flow_run.id,
        )
        earned = attempts.ended_before(states, attempt)
        if earned is not None and states[-1].is_pending():
            await restore(self.client, flow_run.id, earned)
        return None

    async def _await_end(
        self, flow_run: FlowRun, attempt: UUID, configuration: KubernetesWorkerJobConfiguration
    ) -> str | None:
        """Wait until the pod of a former attempt has ended: two would execute the flow otherwise.

        A pod that is ended reschedules its run first, and does not know the reason. If it was the
        deadline of its Job, this returns it: the run must not be executed again. The pod of a Job
        that was deleted may still be running.
        """
        namespace = configuration.namespace
        of_run = {kubernetes.FLOW_RUN_LABEL: str(flow_run.id)}
        selector = f"{kubernetes.FLOW_RUN_LABEL}={flow_run.id},{attempts.ATTEMPT_LABEL}={attempt}"
        async with self._get_configured_kubernetes_client(configuration) as client:

            async def jobs_and_pods() -> JobsAndPods:
                jobs = await kubernetes.jobs_of_flow_runs(client, [namespace], selector)
                return jobs, await kubernetes.pods_with(client, namespace, of_run)

            found: JobsAndPods = await AsyncRetrying(
                retry=retry_if_not_result(_have_ended),
                stop=stop_after_delay(END_SECONDS),
                wait=wait_fixed(0.5),
                retry_error_callback=lambda last: last.outcome and last.outcome.result(),
            )(jobs_and_pods)
        for job in found[0]:
            if kubernetes.is_out_of_time(job):
                return OUT_OF_TIME.format(job.spec.active_deadline_seconds)
        return None

    async def _note_location(
        self, flow_run: FlowRun, configuration: KubernetesWorkerJobConfiguration
    ) -> None:
        """Record where the run's Jobs are, for workers that look for runs without a Job.

        In the same request, record what Prefect's worker does: worker and work pool.
        """
        labels = {
            LOCATION_LABEL: f"{await self._cluster_of(configuration)}/{configuration.namespace}",
            "prefect.worker.name": self.name,
            "prefect.worker.type": self.type,
            "prefect.work-pool.name": self._work_pool_name,
            "prefect.work-pool.id": str(self.work_pool.id),
        }
        await self.client.update_flow_run_labels(flow_run.id, labels)

    async def _cluster_of(self, configuration: KubernetesWorkerJobConfiguration) -> str:
        """Return the name of the cluster; the worker's own is found out once."""
        is_own = configuration.cluster_config is None
        if is_own and self._cluster is not None:
            return self._cluster
        async with self._get_configured_kubernetes_client(configuration) as client:
            cluster = kubernetes.cluster_of(client)
        if is_own:
            self._cluster = cluster
        return cluster

    async def _create_job(self, configuration: JobConfiguration, client: ApiClient) -> V1Job:
        """Create the Job. It may exist already if the response to an earlier request was lost.

        With the setting store_env_as_secret, its environment becomes a Secret.
        """
        try:
            job: V1Job = await super()._create_job(configuration, client)
        except InfrastructureError as error:
            cause = error.__cause__
            wanted = configuration.job_manifest["metadata"]
            if not (isinstance(cause, ApiException) and cause.status == kubernetes.CONFLICT):
                raise
            job = await BatchV1Api(client).read_namespaced_job(
                wanted["name"], configuration.namespace
            )
            if attempts.of_job(job.metadata.labels) != attempts.of_job(wanted["labels"]):
                raise
        if secret := configuration._env_secret:
            await env_secret.create(client, secret, job, configuration.namespace)
        return job

    async def _store_env_as_secret(
        self, configuration: JobConfiguration, client: ApiClient
    ) -> None:
        """Prefect calls this before it creates the Job: let that refer to a Secret."""
        configuration._env_secret = env_secret.move(configuration.job_manifest)


def _not_waited_for(task_status: anyio.abc.TaskStatus[Any] | None) -> KubernetesWorkerResult:
    if task_status is not None:
        task_status.started(NotWaitedForError())
    return KubernetesWorkerResult(identifier="", status_code=0)


def _have_ended(jobs_and_pods: JobsAndPods) -> bool:
    jobs, pods = jobs_and_pods
    return all(map(kubernetes.is_finished, jobs)) and all(map(kubernetes.has_ended, pods))
