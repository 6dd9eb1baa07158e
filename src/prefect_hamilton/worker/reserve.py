"""Keep the standby Jobs of a pool: create, renew and delete idle ones, and finish claims.

Each worker of the pool does so by itself, from what is in the cluster. Each Job fills a slot, and
the name of the next one in a slot follows from the one before, so that two workers do not create
two.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from logging import Logger, LoggerAdapter
from typing import Any, NamedTuple
from uuid import UUID

import anyio
from kubernetes_asyncio.client import ApiClient, BatchV1Api, CoreV1Api, V1Job, V1Pod
from kubernetes_asyncio.client.exceptions import ApiException
from prefect_kubernetes.settings import KubernetesSettings
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from prefect_hamilton.worker import claim, kubernetes, pod_security, standby
from prefect_hamilton.worker.claim import Claims
from prefect_hamilton.worker.standby import Object, Settings

INTERVAL_SECONDS = 10
"""Maximum time between two passes."""

MISSING_SECONDS = 1
"""The same while Jobs are missing, or have been claimed."""

QUIET_SECONDS = 2
"""Time without a claim after which Jobs are created: the runs of a burst come first."""

AT_ONCE = 2
"""Maximum number of standby pods that start at the same time."""

STARTING = "starting"
"""State of an idle Job whose pod does not run yet, where Jobs are counted."""

STARTING_SECONDS = 60
"""How long a pod counts as starting. One that waits longer does not hold the others back."""

FAILED_SECONDS = 60
"""How long the slot of a standby that failed, or that Kubernetes refused, stays empty.

One that ends well in less time has failed, too: it does not wait for a flow run.
"""

RENDERED_SECONDS = 60
"""How long the rendered Job is used. It may contain variables and blocks of Prefect."""

Clients = Callable[[KubernetesWorkerJobConfiguration], AbstractAsyncContextManager[ApiClient]]


class Rendered(NamedTuple):
    """The Job of a flow run that has nothing of its own."""

    configuration: KubernetesWorkerJobConfiguration
    job: Object
    hash: str


class Reserve:
    """The standby Jobs of one group, as one worker keeps them.

    `render` returns the configuration of a flow run without job variables, `is_busy` whether the
    worker is submitting flow runs, which come first, and `is_waited_for` whether a flow run waits
    for the Job of an attempt. `count` gets the number of Jobs by state at each pass.
    """

    def __init__(
        self,
        settings: Settings,
        group: str,
        worker_name: str,
        *,
        clients: Clients,
        render: Callable[[], Awaitable[KubernetesWorkerJobConfiguration]],
        is_busy: Callable[[], bool],
        is_waited_for: Callable[[UUID, UUID], Awaitable[bool]],
        count: Callable[[Mapping[str, int]], None],
        logger: Logger | LoggerAdapter[Any],
    ) -> None:
        self._settings = settings
        self._group = group
        self._worker_name = worker_name
        self._clients = clients
        self._render = render
        self._is_busy = is_busy
        self._is_waited_for = is_waited_for
        self._count = count
        self._logger = logger
        self._rendered: Rendered | None = None
        self._rendered_at = float("-inf")
        self._hash_since = datetime.now(UTC)
        self._claimed_at = float("-inf")
        self._refused_until = float("-inf")
        self._reported: set[str] = set()
        self._woken = anyio.Event()
        self.claims = Claims(group, logger)

    def note_claim(self) -> None:
        """Begin to wait until there are no claims, and then fill the reserve again."""
        self._claimed_at = time.monotonic()
        self._woken.set()

    async def run_forever(self, scope: anyio.CancelScope) -> None:
        """Make passes until the scope is cancelled."""
        with scope:
            while True:
                seconds: float = INTERVAL_SECONDS
                try:
                    if not await self.keep():
                        seconds = MISSING_SECONDS
                except Exception as error:
                    self._logger.warning(
                        "Could not keep standby pods: %s: %s", type(error).__name__, error
                    )
                with anyio.move_on_after(seconds):
                    await self._woken.wait()
                    self._woken = anyio.Event()
                    await anyio.sleep(QUIET_SECONDS)

    async def keep(self) -> bool:
        """Make one pass; returns whether nothing is missing."""
        rendered = await self._render_standby()
        if rendered is None:
            return True
        namespace = rendered.configuration.namespace
        async with self._clients(rendered.configuration) as client:
            selector = f"{standby.GROUP_LABEL}={self._group}"
            jobs = (
                await BatchV1Api(client).list_namespaced_job(namespace, label_selector=selector)
            ).items
            pods = (
                await CoreV1Api(client).list_namespaced_pod(namespace, label_selector=selector)
            ).items
            container = standby.container(rendered.job)["name"]
            ready = {
                pod.metadata.labels[claim.CONTROLLER_LABEL]: pod
                for pod in pods
                if _kind(pod) == standby.IDLE and claim.is_ready(pod, container)
            }
            await self._finish_claims(client, jobs, ready)
            unfinished = [job for job in jobs if not kubernetes.is_finished(job)]
            kinds = [_kind(job) for job in unfinished]
            waiting = {
                job.metadata.uid: _age(job)
                for job in unfinished
                if _kind(job) == standby.IDLE and job.metadata.uid not in ready
            }
            self._count(
                {
                    standby.IDLE: kinds.count(standby.IDLE) - len(waiting),
                    STARTING: len(waiting),
                    standby.CLAIMED: kinds.count(standby.CLAIMED),
                }
            )
            stuck = {uid for uid, age in waiting.items() if age > STARTING_SECONDS}
            starting = len(waiting) - len(stuck)
            may_start = max(0, AT_ONCE - starting) if self._may_create() else 0
            filled = await self._delete_old(client, jobs, rendered, may_start, stuck)
            missing = [slot for slot in range(self._settings.count) if slot not in filled]
            await self._create(client, rendered, jobs, missing[:may_start])
        return not missing

    def _may_create(self) -> bool:
        now = time.monotonic()
        is_quiet = now - self._claimed_at >= QUIET_SECONDS and now >= self._refused_until
        return is_quiet and not self._is_busy()

    async def _render_standby(self) -> Rendered | None:
        """Return the Job to prepare; None if the pool's pods cannot be standbys."""
        now = time.monotonic()
        if now - self._rendered_at < RENDERED_SECONDS:
            return self._rendered
        configuration = await self._render()
        before = self._rendered
        self._rendered_at, self._rendered = now, None
        if reason := unfit(configuration):
            self._report(reason, reason)
            return None
        job = standby.with_references(configuration.job_manifest)
        assert job is not None  # noqa: S101  # or it would be unfit
        self._rendered = Rendered(configuration, job, standby.hash_of(job))
        if before is None or before.hash != self._rendered.hash:
            self._hash_since = datetime.now(UTC)
        return self._rendered

    async def _finish_claims(
        self, client: ApiClient, jobs: Iterable[V1Job], idle: Mapping[str, V1Pod]
    ) -> None:
        """Give pods of claimed Jobs the assignment that they lack, as when a worker has died.

        A pod does not know its attempt, so it must not begin a run that has another one by now.
        """
        for job in jobs:
            uid = job.metadata.uid
            if kubernetes.is_finished(job) or uid in self.claims.busy:
                continue
            if _kind(job) == standby.WITHDRAWN:
                await claim.delete(client, job)
            elif _kind(job) == standby.CLAIMED and uid in idle:
                run_id, attempt = claim.of_job(job)
                if await self._is_waited_for(run_id, attempt):
                    self._logger.info("Finishing the claim of Job %s.", job.metadata.name)
                    await self.claims.deliver(client, job, idle[uid])
                else:
                    await claim.withdraw(client, job)

    async def _delete_old(
        self,
        client: ApiClient,
        jobs: Iterable[V1Job],
        rendered: Rendered,
        may_start: int,
        stuck: Set[str],
    ) -> set[int]:
        """Delete idle Jobs that are of no more use; returns the slots that are filled.

        Not more Jobs are deleted for their age than may be started in their place, unless they
        serve nobody.
        """
        filled: set[int] = set()
        aged = 0
        for job in sorted(jobs, key=lambda each: each.metadata.creation_timestamp):
            if _kind(job) != standby.IDLE or job.metadata.deletion_timestamp:
                continue
            slot = int(job.metadata.labels[standby.SLOT_LABEL])
            uid, name, age = job.metadata.uid, job.metadata.name, _age(job)
            if (ended := kubernetes.end_of(job)) is not None:
                since = (datetime.now(UTC) - ended).total_seconds()
                if job.status.succeeded and age - since >= FAILED_SECONDS:
                    await claim.delete(client, job)
                    continue
                self._report(uid, f"Standby pod of Job {name} ended by itself: see its log.")
                if since > FAILED_SECONDS:
                    await claim.delete(client, job)
                    continue
            elif self._is_foreign(job, rendered, slot, filled):
                await claim.delete(client, job, version=job.metadata.resource_version)
                continue
            elif age > self._settings.max_age_seconds and (aged < may_start or uid in stuck):
                aged += 1
                await claim.delete(client, job, version=job.metadata.resource_version)
                continue
            elif uid in stuck:
                self._report(
                    uid,
                    f"Standby pod of Job {name} does not start: see kubectl describe job {name}.",
                )
            filled.add(slot)
        return filled

    def _is_foreign(self, job: V1Job, rendered: Rendered, slot: int, filled: set[int]) -> bool:
        """Whether an idle Job is superfluous, or older than what this worker would create.

        A newer one with another hash is of a worker that knows a newer job template.
        """
        if slot >= self._settings.count or slot in filled:
            return True
        is_other = job.metadata.labels.get(standby.HASH_LABEL) != rendered.hash
        return is_other and bool(job.metadata.creation_timestamp < self._hash_since)

    async def _create(
        self, client: ApiClient, rendered: Rendered, jobs: Iterable[V1Job], slots: Iterable[int]
    ) -> None:
        newest: dict[str | None, V1Job] = {}
        for job in sorted(jobs, key=lambda each: each.metadata.creation_timestamp):
            newest[job.metadata.labels.get(standby.SLOT_LABEL)] = job
        for slot in slots:
            labels = {
                standby.GROUP_LABEL: self._group,
                standby.HASH_LABEL: rendered.hash,
                standby.SLOT_LABEL: str(slot),
            }
            last = newest.get(str(slot))
            # Where there is none before, the minute: a name must not be used twice.
            before = last.metadata.uid if last else f"{time.time() // 60:.0f}"
            name = standby.job_name(self._worker_name, slot, f"{self._group} {before}")
            manifest = standby.idle(rendered.job, self._settings, labels, name)
            api: Any = BatchV1Api(client)  # Its type has no manifest.
            try:
                await api.create_namespaced_job(rendered.configuration.namespace, manifest)
            except ApiException as error:
                if error.status != kubernetes.CONFLICT:
                    self._refused_until = time.monotonic() + FAILED_SECONDS
                    raise
                # Another worker was faster.
            else:
                self._logger.info("Created standby Job %s.", name)

    def _report(self, key: str, message: str) -> None:
        """Log a message once."""
        if key not in self._reported:
            self._reported.add(key)
            self._logger.warning(message)


def unfit(configuration: KubernetesWorkerJobConfiguration) -> str | None:
    """Return, in a sentence, why a flow run's pod cannot be a standby; None if it can."""
    if configuration.cluster_config is not None:
        return "Standby pods are only for flow runs in the worker's own cluster."
    if KubernetesSettings().worker.store_env_as_secret:
        return "There are no standby pods with the setting store_env_as_secret of Prefect's worker."
    if standby.with_references(configuration.job_manifest) is None:
        return (
            "There are no standby pods, because they would contain the API's credential: name its "
            "Secret in the settings of Prefect's worker."
        )
    return pod_security.refusal(configuration.job_manifest["spec"]["template"]["spec"])


def _age(job: V1Job) -> float:
    """Return the number of seconds since a Job was created."""
    return float((datetime.now(UTC) - job.metadata.creation_timestamp).total_seconds())


def _kind(of: V1Job | V1Pod) -> str | None:
    """Return whether a Job or pod is idle, claimed or withdrawn."""
    kind: str | None = (of.metadata.labels or {}).get(standby.LABEL)
    return kind
