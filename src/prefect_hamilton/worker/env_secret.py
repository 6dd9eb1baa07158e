"""The environment of a flow run in a Secret of its Job: store_env_as_secret of Prefect's worker.

Prefect creates the Secret before the Job, which becomes its owner by a patch. If the worker ended
in between, the Secret would stay; if the answer to the creation of the Job was lost, Prefect
deletes the Secret of a Job that exists; and the worker would need the right to change all Secrets.
Here the Job is created first. Its pod waits for the Secret, which is created with its owner. If the
worker is killed in between, another one deletes the Job, and the run gets a new one.
"""

import contextlib
import json
import re
from typing import Any
from uuid import uuid4

import aiohttp
from kubernetes_asyncio.client import (
    ApiClient,
    CoreV1Api,
    V1Job,
    V1ObjectMeta,
    V1OwnerReference,
    V1Pod,
    V1Secret,
)
from kubernetes_asyncio.client.exceptions import ApiException
from prefect.exceptions import InfrastructureError

from prefect_hamilton.worker import claim, kubernetes

FAILURES = (ApiException, aiohttp.ClientError, TimeoutError)

NOT_CONFIGURED = "CreateContainerConfigError"
"""Why a container waits whose Secret is not there."""

REFERENCE = re.compile(r"\$\(([^)]+)\)")
"""What Kubernetes replaces in the value of a variable of a Job, but not in that of a Secret."""


def move(job: dict[str, Any]) -> V1Secret | None:
    """Let the flow container of a Job refer to a Secret; returns it, not created yet.

    Values that refer to other variables stay in the Job. None if there are no others.
    """
    container = job["spec"]["template"]["spec"]["containers"][0]
    variables = container.get("env", [])
    names = {each["name"] for each in variables}
    moved = {
        each["name"]: str(each["value"])
        for each in variables
        if "value" in each and not names.intersection(REFERENCE.findall(str(each["value"])))
    }
    if not moved:
        return None
    metadata = job["metadata"]
    # An attempt has a Job of one name.
    name = name_of(metadata.get("name") or f"{metadata['generateName']}{uuid4().hex[:8]}")
    container["env"] = [each for each in variables if each["name"] not in moved]
    reference = {"secretRef": {"name": name}}
    # The last one: where two have a variable, that of the flow run counts, as in the Job.
    container["envFrom"] = [*(container.get("envFrom") or []), reference]
    flow_run = (metadata.get("labels") or {}).get(kubernetes.FLOW_RUN_LABEL)
    labels = {kubernetes.FLOW_RUN_LABEL: flow_run} if flow_run else {}
    return V1Secret(
        metadata=V1ObjectMeta(
            name=name, labels={"app.kubernetes.io/managed-by": "prefect", **labels}
        ),
        string_data=moved,
    )


async def create(client: ApiClient, secret: V1Secret, job: V1Job, namespace: str) -> None:
    """Create the Secret of a Job, with which Kubernetes deletes it; it may exist already.

    If that is not possible, the Job is deleted, whose pod could not start. Raises
    InfrastructureError.
    """
    secret.metadata.owner_references = [
        V1OwnerReference(
            api_version="batch/v1", kind="Job", name=job.metadata.name, uid=job.metadata.uid
        )
    ]
    try:
        async for attempt in kubernetes.until_clear():
            with attempt:
                await CoreV1Api(client).create_namespaced_secret(namespace, secret)
    except FAILURES as error:
        if isinstance(error, ApiException) and error.status == kubernetes.CONFLICT:
            return
        with contextlib.suppress(*FAILURES):
            await claim.delete(client, job)
        raise InfrastructureError(
            f"Unable to create the Secret with the environment of the flow run: {_reason(error)}"
        ) from error


async def is_missing(client: ApiClient, job: V1Job) -> bool:
    """Whether a pod of the Job waits for its Secret."""
    if kubernetes.is_finished(job) or (job.status and job.status.ready):
        return False
    where = (job.metadata.name, job.metadata.namespace)
    pods = await kubernetes.pods_of_job(client, *where)
    return any(_waits_for(name_of(where[0]), pod) for pod in pods)


def _waits_for(secret: str, pod: V1Pod) -> bool:
    states = [each.state for each in (pod.status and pod.status.container_statuses) or []]
    waiting = [state.waiting for state in states if state and state.waiting]
    return any(
        each.reason == NOT_CONFIGURED and f'"{secret}" not found' in (each.message or "")
        for each in waiting
    )


def name_of(job: str) -> str:
    """Return the name of a Job's Secret."""
    return f"{job}-env"


def _reason(error: Exception) -> str:
    if not isinstance(error, ApiException):
        return repr(error)
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, TypeError, KeyError):
        return str(error.reason)
