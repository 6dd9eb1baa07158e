"""Decide about a flow run whose pod ended and did not report it.

Before its flow started, nothing of it has run, so the run is rescheduled if the pod was deleted,
evicted or lost with its node, or if the Prefect API did not answer it. A container that failed by
itself would fail again.

A flow that has started is executed again only if its pod has said that it was ended.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from kubernetes_asyncio.client import V1ContainerStatus, V1Job, V1Pod
from prefect.client.schemas.objects import State
from prefect.states import Crashed

from prefect_hamilton.states import NO_ANSWER, NOT_RESCHEDULED, rescheduled
from prefect_hamilton.worker import attempts, kubernetes

NOT_STARTED = "Its pod ended before the flow started"
"""How the message of each such state begins. The states are counted by it."""

UNREPORTED = "Its pod was ended while the Prefect API did not answer."

MAX_TRIES = 3

KILLED = {137, 143, 255}
"""Exit codes of a container that was ended from outside: SIGKILL, SIGTERM, lost with its node."""


def of_started(job: V1Job | None, message: str) -> State[Any]:
    """Return the next state of a run whose flow has started and whose Job has ended.

    `message` says of one that crashed how it ended; `job` is None when it was deleted.
    """
    if kubernetes.is_to_be_rescheduled(job):
        return rescheduled(UNREPORTED)
    return Crashed(message=message)


def of_unstarted(
    states: Sequence[State[Any]], job: V1Job | None, pods: Iterable[V1Pod]
) -> State[Any]:
    """Return the next state of a run that is Pending and whose Job has ended.

    `states` are all of the run, the first one first; `job` is None when it was deleted.
    """
    pods = list(pods)
    if (reason := _own_reason(job, pods)) is not None:
        return Crashed(message=f"{NOT_STARTED}: {reason}.")
    reason = next((each for pod in pods if (each := _taken_by(pod))), "the pod no longer exists")
    tries = 1 + attempts.waits_in_a_row(states, NOT_STARTED)
    if tries < MAX_TRIES:
        return rescheduled(f"{NOT_STARTED}: {reason}. Try {tries} of {MAX_TRIES}.")
    return Crashed(message=f"{NOT_STARTED}, {tries} times in a row. The last time: {reason}.")


def _own_reason(job: V1Job | None, pods: Iterable[V1Pod]) -> str | None:
    """Return why a pod failed by itself; None if none did, so that another pod may succeed."""
    for condition in (job and job.status and job.status.conditions) or []:
        # Kubernetes deletes the pods of such a Job.
        if condition.type == "Failed" and condition.reason == "DeadlineExceeded":
            return f"{condition.reason}, {(condition.message or '').strip('.')}"
    ends = (_own_end(each) for pod in pods if not _is_taken(pod) for each in _containers(pod))
    return next((reason for reason in ends if reason), None)


def _own_end(container: V1ContainerStatus) -> str | None:
    end = container.state and container.state.terminated
    if not end or not end.exit_code:
        return None
    if end.reason != "OOMKilled" and end.exit_code in {*KILLED, NO_ANSWER, NOT_RESCHEDULED}:
        return None
    return _words(container)


def _is_taken(pod: V1Pod) -> bool:
    """Whether the cluster, or a person, ended the pod."""
    return bool(
        pod.metadata.deletion_timestamp
        or pod.status.reason
        or any(each.type == "DisruptionTarget" for each in pod.status.conditions or [])
    )


def _taken_by(pod: V1Pod) -> str | None:
    """Return what ended a pod that did not fail by itself."""
    for condition in pod.status.conditions or []:
        if condition.type == "DisruptionTarget":
            return f"{condition.reason}, {(condition.message or '').strip('.')}"
    if pod.status.reason:
        return f"{pod.status.reason}, {(pod.status.message or '').strip('. ')}"
    if pod.metadata.deletion_timestamp:
        return "the pod was deleted"
    ended = [each for each in _containers(pod) if each.state and each.state.terminated]
    return _words(ended[-1]) if ended else None


def _words(container: V1ContainerStatus) -> str:
    end = container.state.terminated
    if end.exit_code in (NO_ANSWER, NOT_RESCHEDULED):
        return "the Prefect API did not answer the pod"
    message = f", {end.message.strip().splitlines()[-1].strip('.')}" if end.message else ""
    code = f"container {container.name!r} ended with exit code {end.exit_code}"
    return f"{code} ({end.reason}){message}" if end.reason else f"{code}{message}"


def _containers(pod: V1Pod) -> list[V1ContainerStatus]:
    return [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]
