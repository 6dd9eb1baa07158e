"""Give a standby Job to a flow run.

First the Job is claimed: a patch that is accepted only while the Job is idle, so that one worker
gets it, and after which the Job says whose it is. Then its pod gets the same labels, and the
assignment: as an annotation, and as a line on its standard input, which arrives first. Whatever
happens to the worker in between, any worker can tell from the Job what remains to be done.
"""

import json
import math
from datetime import UTC, datetime
from logging import Logger, LoggerAdapter
from typing import Any
from uuid import UUID

import aiohttp
import anyio
from kubernetes_asyncio.client import (
    ApiClient,
    BatchV1Api,
    CoreV1Api,
    V1DeleteOptions,
    V1Job,
    V1Pod,
    V1Preconditions,
)
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.stream import WsApiClient

from prefect_hamilton.flow_pod import standby as pod_standby
from prefect_hamilton.worker import attempts, kubernetes, standby
from prefect_hamilton.worker.standby import Object

HEARD_SECONDS = 3
"""How long the pod may take to confirm a line. Otherwise it will find the annotation."""

END_SECONDS = 60
"""How long the pod of a withdrawn Job may take to end."""

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
CONTROLLER_LABEL = "batch.kubernetes.io/controller-uid"

INVALID = 422
FORBIDDEN = 403

STDIN = b"\0"
"""Channel of standard input in the protocol of `pods/attach`."""


class WithdrawnError(Exception):
    """A standby pod ended before it had its assignment, and its Job has been deleted.

    The flow run may no longer wait for one: its state must be read again.
    """


class Claims:
    """The claims of one worker in a group of standby Jobs."""

    def __init__(self, group: str, logger: Logger | LoggerAdapter[Any]) -> None:
        self._group = group
        self._logger = logger
        self.busy: set[str] = set()
        """Ids of Jobs that are being claimed."""
        self._is_warned = False

    async def claim(
        self, client: ApiClient, wanted: Object, namespace: str, attempt: UUID
    ) -> V1Job | None:
        """Return the Job that has become the wanted one; None if a new one must be created.

        Raises WithdrawnError after a pod that ended too early, and TimeoutError, ApiException or
        ClientError if Kubernetes does not answer.
        """
        container = standby.container(wanted)["name"]
        labels = {
            standby.LABEL: standby.IDLE,
            standby.GROUP_LABEL: self._group,
            standby.HASH_LABEL: standby.hash_of(wanted),
        }
        idle = await kubernetes.pods_with(client, namespace, labels)
        found = [pod for pod in idle if is_ready(pod, container)]
        assignment = standby.assignment(wanted, attempt)
        # In an order of its own, since other claims look for one, too.
        for pod in sorted(found, key=lambda each: hash((attempt, each.metadata.uid))):
            owner = _job_of(pod)
            if owner is None or owner.uid in self.busy:
                continue
            self.busy.add(owner.uid)
            try:
                where = (owner.name, namespace)
                job = await _lock(
                    client, *where, _claiming(owner.uid, wanted, assignment, pod), assignment
                )
                if job is None:
                    continue
                if await self.deliver(client, job, pod):
                    return job
                await withdraw(client, job)
                raise WithdrawnError
            finally:
                self.busy.discard(owner.uid)
        return None

    async def deliver(self, client: ApiClient, job: V1Job, pod: V1Pod) -> bool:
        """Give a claimed Job's assignment to its pod; False if the pod has ended without it."""
        assignment = job.metadata.annotations[pod_standby.ANNOTATION]
        # Others may have been added to the pod, also as the first one.
        container = job.spec.template.spec.containers[0].name
        labels = {k: v for k, v in job.metadata.labels.items() if standby.is_of_run(k)}
        patch = {
            "metadata": {
                # Refused if another pod has the name.
                "uid": pod.metadata.uid,
                "labels": labels | {standby.LABEL: standby.CLAIMED},
                "annotations": {pod_standby.ANNOTATION: assignment},
            }
        }
        api: Any = CoreV1Api(client)  # Its type has no content type.
        where = (pod.metadata.name, pod.metadata.namespace)
        try:
            async for attempt in kubernetes.until_clear():
                with attempt:
                    pod = await api.patch_namespaced_pod(*where, patch, _content_type=MERGE_PATCH)
        except ApiException as error:
            if error.status in (kubernetes.NOT_FOUND, kubernetes.CONFLICT, INVALID):
                return False
            raise
        if not is_ready(pod, container):
            return False
        if await self._tell(client, pod, container, assignment):
            return True
        # It will read the annotation, if it lives.
        async for attempt in kubernetes.until_clear():
            with attempt:
                pod = await api.read_namespaced_pod(*where)
        return is_ready(pod, container)

    async def _tell(self, client: ApiClient, pod: V1Pod, container: str, assignment: str) -> bool:
        """Write the assignment to the pod's standard input; whether the pod has confirmed it."""
        run_id = json.loads(assignment)[pod_standby.ENVIRONMENT]["PREFECT__FLOW_RUN_ID"]
        try:
            with anyio.fail_after(HEARD_SECONDS):
                return await _told(client, pod, container, assignment, run_id)
        except aiohttp.WSServerHandshakeError as error:
            if error.status == FORBIDDEN and not self._is_warned:
                self._is_warned = True
                self._logger.warning(
                    "Standby pods start late, because the worker may not attach to them: give it "
                    "the verbs get and create on pods/attach."
                )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._logger.info("Pod %s did not confirm its flow run: %r", pod.metadata.name, error)
        return False


async def _told(
    client: ApiClient, pod: V1Pod, container: str, assignment: str, run_id: str
) -> bool:
    async with WsApiClient(configuration=client.configuration) as sockets:
        api: Any = CoreV1Api(sockets)  # Its type has only the text of a finished request.
        request = await api.connect_get_namespaced_pod_attach(
            pod.metadata.name,
            pod.metadata.namespace,
            container=container,
            stdin=True,
            stdout=True,
            stderr=True,
            _preload_content=False,
        )
        async with request as stream:
            await stream.send_bytes(STDIN + assignment.encode() + b"\n")
            heard = b""
            async for message in stream:
                # The first byte is the channel.
                heard += message.data[1:] if isinstance(message.data, bytes) else b""
                if run_id.encode() in heard:
                    return True
    return False


def is_ready(pod: V1Pod, container: str) -> bool:
    """Whether a container of the pod is running and nothing has ended the pod."""
    if pod.metadata.deletion_timestamp or pod.status.phase != "Running":
        return False
    states = [each.state for each in pod.status.container_statuses or [] if each.name == container]
    return any(state and state.running for state in states)


def _job_of(pod: V1Pod) -> Any:
    owners = pod.metadata.owner_references or []
    return next((each for each in owners if each.kind == "Job"), None)


def _claiming(uid: str, wanted: Object, assignment: str, pod: V1Pod) -> list[Object]:
    """Return the patch that makes an idle Job the wanted one."""
    labels = wanted["metadata"]["labels"] | {standby.LABEL: standby.CLAIMED}
    operations = [
        {"op": "test", "path": "/metadata/uid", "value": uid},
        {"op": "test", "path": _path("labels", standby.LABEL), "value": standby.IDLE},
        *(
            {"op": "add", "path": _path("labels", key), "value": value}
            for key, value in labels.items()
            if standby.is_of_run(key) or key in (standby.LABEL, attempts.ATTEMPT_LABEL)
        ),
        {"op": "add", "path": _path("annotations", pod_standby.ANNOTATION), "value": assignment},
        # It must outlive the worker.
        {"op": "add", "path": "/metadata/ownerReferences", "value": []},
    ]
    if seconds := wanted["spec"].get("activeDeadlineSeconds"):
        # Counted from the start of the Job: the time in which it was idle is no part of the run's.
        waited = (datetime.now(UTC) - pod.metadata.creation_timestamp).total_seconds()
        deadline = int(seconds) + max(0, math.ceil(waited))
        operations.append({"op": "add", "path": "/spec/activeDeadlineSeconds", "value": deadline})
    return operations


def _path(part: str, key: str) -> str:
    return f"/metadata/{part}/{key.replace('~', '~0').replace('/', '~1')}"


async def _lock(
    client: ApiClient, name: str, namespace: str, patch: list[Object], assignment: str
) -> V1Job | None:
    """Claim the Job; None if it is another's or gone. Repeats the patch until the answer is clear.

    A patch whose answer was lost may have been accepted. It is then refused when it is repeated,
    and the Job has the assignment.
    """
    try:
        async for attempt in kubernetes.until_clear():
            with attempt:
                job = await _patched(client, name, namespace, patch)
    except ApiException as error:
        if error.status not in (kubernetes.NOT_FOUND, kubernetes.CONFLICT, INVALID):
            raise
        async for attempt in kubernetes.until_clear():
            with attempt:
                found = await kubernetes.job_named(client, name, namespace)
        return found if found is not None and _assignment_of(found) == assignment else None
    return job


async def withdraw(client: ApiClient, job: V1Job) -> None:
    """Delete a claimed Job whose pod has no assignment, and return when no pod is left.

    It loses the flow run first, so that its end is not taken for that of the run.
    """
    name, namespace, uid = job.metadata.name, job.metadata.namespace, job.metadata.uid
    patch = [
        {"op": "test", "path": "/metadata/uid", "value": uid},
        {"op": "add", "path": _path("labels", standby.LABEL), "value": standby.WITHDRAWN},
        {"op": "remove", "path": _path("labels", kubernetes.FLOW_RUN_LABEL)},
    ]
    async for attempt in kubernetes.until_clear():
        with attempt:
            try:
                await _patched(client, name, namespace, patch)
            except ApiException as error:
                if error.status not in (kubernetes.NOT_FOUND, kubernetes.CONFLICT, INVALID):
                    raise
            await delete(client, job)
    selector = f"{CONTROLLER_LABEL}={uid}"
    with anyio.fail_after(END_SECONDS):
        while True:
            pods = await CoreV1Api(client).list_namespaced_pod(namespace, label_selector=selector)
            if all(map(kubernetes.has_ended, pods.items)):
                return
            await anyio.sleep(0.2)


async def _patched(client: ApiClient, name: str, namespace: str, patch: list[Object]) -> V1Job:
    api: Any = BatchV1Api(client)  # Its type has no content type.
    job: V1Job = await api.patch_namespaced_job(name, namespace, patch, _content_type=JSON_PATCH)
    return job


async def delete(client: ApiClient, job: V1Job, *, version: str | None = None) -> bool:
    """Delete a Job and its pod; False if it has changed since the version, or is gone."""
    preconditions = V1Preconditions(uid=job.metadata.uid, resource_version=version)
    options = V1DeleteOptions(propagation_policy="Background", preconditions=preconditions)
    try:
        await BatchV1Api(client).delete_namespaced_job(
            job.metadata.name, job.metadata.namespace, body=options
        )
    except ApiException as error:
        if error.status not in (kubernetes.NOT_FOUND, kubernetes.CONFLICT):
            raise
        return False
    return True


def of_job(job: V1Job) -> tuple[UUID, UUID]:
    """Return the flow run and the attempt that a Job was claimed for."""
    labels = job.metadata.labels
    return UUID(labels[kubernetes.FLOW_RUN_LABEL]), UUID(labels[attempts.ATTEMPT_LABEL])


def _assignment_of(job: V1Job) -> str | None:
    return (job.metadata.annotations or {}).get(pod_standby.ANNOTATION)
