"""Requests to Kubernetes: the cluster's name, and the Jobs and pods of flow runs."""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes_asyncio.client import ApiClient, BatchV1Api, CoreV1Api, V1Job, V1Pod
from kubernetes_asyncio.client.exceptions import ApiException
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_fixed

from prefect_hamilton.states import NOT_RESCHEDULED

NOT_FOUND = 404
CONFLICT = 409

CLEAR_SECONDS = 30
"""How long a request is repeated whose answer was lost."""

FLOW_RUN_LABEL = "prefect.io/flow-run-id"


def cluster_of(client: ApiClient) -> str:
    """Return a name of the cluster: from its authority, which no two clusters share."""
    configuration = client.configuration
    authority = configuration.ssl_ca_cert
    return cluster_with(
        Path(authority).read_bytes() if authority else str(configuration.host).encode()
    )


def cluster_with(authority: bytes) -> str:
    """Return the name of the cluster with this authority."""
    return hashlib.sha256(authority).hexdigest()[:12]


async def jobs_of_flow_runs(
    client: ApiClient, namespaces: Iterable[str], selector: str = FLOW_RUN_LABEL
) -> list[V1Job]:
    """List the Jobs of all flow runs in some namespaces; in all when none is named."""
    api = BatchV1Api(client)
    if not namespaces:
        found = await api.list_job_for_all_namespaces(label_selector=selector)
        return list(found.items)
    lists = [
        await api.list_namespaced_job(namespace, label_selector=selector)
        for namespace in namespaces
    ]
    return [job for found in lists for job in found.items]


async def job_named(client: ApiClient, name: str, namespace: str) -> V1Job | None:
    """Return a Job; None if there is none of the name."""
    try:
        job: V1Job = await BatchV1Api(client).read_namespaced_job(name, namespace)
    except ApiException as error:
        if error.status == NOT_FOUND:
            return None
        raise
    return job


async def pods_with(client: ApiClient, namespace: str, labels: Mapping[str, str]) -> list[V1Pod]:
    """List the pods with these labels, also those that have ended or whose Job was deleted."""
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    found = await CoreV1Api(client).list_namespaced_pod(namespace, label_selector=selector)
    return list(found.items)


async def pods_of_job(client: ApiClient, name: str, namespace: str) -> list[V1Pod]:
    """List the pods of a Job, also those that have ended."""
    return await pods_with(client, namespace, {"batch.kubernetes.io/job-name": name})


def has_ended(pod: V1Pod) -> bool:
    """Whether no container of the pod is running or will."""
    return pod.status.phase in ("Failed", "Succeeded")


async def is_pod_gone(client: ApiClient, name: str, namespace: str) -> bool:
    """Whether the pod has ended or no longer exists; False if Kubernetes does not tell."""
    selector = f"metadata.name={name}"
    try:
        found = await CoreV1Api(client).list_namespaced_pod(namespace, field_selector=selector)
    except (ApiException, aiohttp.ClientError, TimeoutError):
        return False
    return all(map(has_ended, found.items))


def is_finished(job: V1Job) -> bool:
    """Whether the Job has ended, one way or the other."""
    conditions: list[Any] = (job.status and job.status.conditions) or []
    return any(
        condition.type in ("Complete", "Failed") and condition.status == "True"
        for condition in conditions
    )


def is_out_of_time(job: V1Job) -> bool:
    """Whether the pods of the Job are, or will be, ended because its deadline has passed."""
    conditions: list[Any] = (job.status and job.status.conditions) or []
    if any(condition.reason == "DeadlineExceeded" for condition in conditions):
        return True
    # Kubernetes deletes the pods before it writes the condition.
    began: datetime | None = job.status.start_time if job.status else None
    seconds: int | None = job.spec.active_deadline_seconds
    if began is None or seconds is None or is_finished(job):
        return False
    return began + timedelta(seconds=seconds) <= datetime.now(UTC)


def is_to_be_rescheduled(job: V1Job | None) -> bool:
    """Whether the pod of the Job was ended and could not reschedule its flow run."""
    conditions: list[Any] = (job and job.status and job.status.conditions) or []
    words = f" exit code {NOT_RESCHEDULED} "
    return any(
        condition.reason == "PodFailurePolicy" and words in (condition.message or "")
        for condition in conditions
    )


def end_of(job: V1Job) -> datetime | None:
    """Return when a Job ended; None if it has not."""
    conditions: list[Any] = (job.status and job.status.conditions) or []
    for condition in conditions:
        if condition.type in ("Complete", "Failed") and condition.status == "True":
            ended: datetime = condition.last_transition_time
            return ended
    return None


def is_outage(error: BaseException | None) -> bool:
    """Whether the error means that the API of Kubernetes was unavailable."""
    if isinstance(error, ApiException):
        return (error.status or 0) in (408, 429) or (error.status or 0) >= 500
    return isinstance(error, aiohttp.ClientError | TimeoutError | OSError)


def until_clear() -> AsyncRetrying:
    """Repeat a request while Kubernetes does not answer it."""
    return AsyncRetrying(
        retry=retry_if_exception(is_outage),
        stop=stop_after_delay(CLEAR_SECONDS),
        wait=wait_fixed(0.5),
        reraise=True,
    )
