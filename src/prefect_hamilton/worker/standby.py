"""What a standby Job is: an ordinary Job of the pool, made before its flow run is known.

It is rendered like the Job of a flow run, and may become any Job that differs from it only in its
name, in the labels that Prefect gives it, in its deadline and in the variables that name the flow
run. A flow run whose Job differs otherwise gets a Job of its own.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect_kubernetes.settings import KubernetesSettings

from prefect_hamilton.flow_pod import attempt
from prefect_hamilton.flow_pod import standby as pod
from prefect_hamilton.worker import attempts
from prefect_hamilton.worker.job import merged

Object = dict[str, Any]

COUNT = "PREFECT_HAMILTON_STANDBY_COUNT"
MAX_AGE = "PREFECT_HAMILTON_STANDBY_MAX_AGE_SECONDS"
"""Variables of the worker, besides that of the modules to preload."""

OWNER_NAME = "PREFECT_HAMILTON_WORKER_POD_NAME"
OWNER_UID = "PREFECT_HAMILTON_WORKER_POD_UID"
"""Variables with the worker's own pod, where it is in the namespace of the flow pods."""

GRACE_SECONDS = 120
"""How long an idle pod outlives its maximum age, in which a worker replaces it."""

FOLDER, FILE = "/var/run/prefect-hamilton", "flow-run"
"""Where the flow container finds its pod's annotation."""

VOLUME = "prefect-hamilton-standby"
"""Name of the volume with that file."""

LABEL = "prefect-hamilton/standby"
"""Label of Job and pod: one of the next three. Other Jobs do not have it."""

IDLE = "idle"
CLAIMED = "claimed"
WITHDRAWN = "withdrawn"
"""Its pod ended before it had its assignment; the Job is being deleted."""

GROUP_LABEL = "prefect-hamilton/standby-group"
"""Which workers share it: those of one name and pool."""

HASH_LABEL = "prefect-hamilton/standby-hash"
"""Which flow runs it may execute: those whose Job has the same hash."""

SLOT_LABEL = "prefect-hamilton/standby-slot"
"""Label of the Job: the place that it fills, from 0."""

RUN_VARIABLES = {
    "PREFECT__FLOW_RUN_ID",
    "PREFECT__WORKER_ID",
    "PREFECT__WORKER_NAME",
    "PREFECT__FLOW_ID",
    "PREFECT__FLOW_NAME",
    "PREFECT__DEPLOYMENT_ID",
    "PREFECT__DEPLOYMENT_NAME",
    attempt.VARIABLE,
}
"""What the worker adds to the environment of a flow run. None of them is a secret."""

PREFECTS_LABELS = {
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/name",
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/version",
}
"""Labels that Prefect's worker sets, besides those that begin with `prefect.io/`."""


@dataclass(frozen=True)
class Settings:
    """How many standby pods a pool has, how old they become, and what they import."""

    count: int = 0
    max_age_seconds: int = 900
    preload: str = ""


def settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of this worker."""
    return Settings(
        int(environment.get(COUNT) or 0),
        int(environment.get(MAX_AGE) or Settings().max_age_seconds),
        environment.get(pod.PRELOAD) or "",
    )


def group(pool_id: UUID, worker_name: str) -> str:
    """Return the value of the label that the pods of one worker share."""
    return _digest(f"{pool_id}/{worker_name}")


def is_of_run(label: str) -> bool:
    """Whether a label belongs to the flow run of a Job, and not to its pool."""
    return label.startswith("prefect.io/") or label in PREFECTS_LABELS


def with_references(job: Object) -> Object | None:
    """Return a Job whose credentials are references, as in a Job that Prefect's worker creates.

    None if a credential would remain in it as a value.
    """
    worker = KubernetesSettings().worker
    sources = {
        "PREFECT_API_KEY": (worker.api_key_secret_name, worker.api_key_secret_key),
        "PREFECT_API_AUTH_STRING": (
            worker.api_auth_string_secret_name,
            worker.api_auth_string_secret_key,
        ),
    }
    result = copy.deepcopy(job)
    for entry in container(result).get("env", []):
        if entry["name"] in sources and "value" in entry:
            name, key = sources[entry["name"]]
            if not (name and key):
                return None
            del entry["value"]
            entry["valueFrom"] = {"secretKeyRef": {"name": name, "key": key}}
    return result


def common_part(job: Object) -> Object:
    """Return what the Jobs of flow runs have in common that one standby can serve."""
    result = copy.deepcopy(job)
    for name in ("name", "generateName"):
        result["metadata"].pop(name, None)
    result["spec"].pop("activeDeadlineSeconds", None)
    template = result["spec"]["template"]
    for metadata in (result["metadata"], template.setdefault("metadata", {})):
        labels = metadata.get("labels") or {}
        metadata["labels"] = {
            key: value
            for key, value in labels.items()
            if not is_of_run(key) and key != attempts.ATTEMPT_LABEL
        }
    flow = container(result)
    flow["env"] = [each for each in flow.get("env", []) if each["name"] not in RUN_VARIABLES]
    return result


def hash_of(job: Object) -> str:
    """Return the hash of the part that a standby must have in common with a Job."""
    return _digest(json.dumps(common_part(job), sort_keys=True, default=str))


def idle(job: Object, of: Settings, labels: Mapping[str, str], name: str) -> Object:
    """Return the standby Job that can become the given Job of a flow run.

    `labels` are its group, hash and slot.
    """
    result = common_part(job)
    shared = {key: value for key, value in labels.items() if key != SLOT_LABEL}
    variables = {
        pod.SECONDS: str(of.max_age_seconds + GRACE_SECONDS),
        pod.PRELOAD: of.preload,
        pod.FILE: f"{FOLDER}/{FILE}",
    }
    no_word = {pod.ANNOTATION: ""}
    source = {"fieldPath": f"metadata.annotations['{pod.ANNOTATION}']"}
    volume = {
        "name": VOLUME,
        "downwardAPI": {"items": [{"path": FILE, "fieldRef": source}]},
    }
    additions = {
        "metadata": {"labels": {LABEL: IDLE, **shared}, "annotations": no_word},
        "spec": {
            "volumes": [volume],
            "containers": [
                {
                    "name": container(result)["name"],
                    "stdin": True,
                    "env": [{"name": key, "value": value} for key, value in variables.items()],
                    "volumeMounts": [{"name": VOLUME, "mountPath": FOLDER, "readOnly": True}],
                }
            ],
        },
    }
    result["spec"]["template"] = merged(result["spec"]["template"], additions)
    metadata = result["metadata"]
    metadata["name"] = name
    metadata["labels"] |= {LABEL: IDLE, **labels}
    metadata["annotations"] = (metadata.get("annotations") or {}) | no_word
    if owner := _owner():
        metadata["ownerReferences"] = [owner]
    return result


def _owner() -> Object | None:
    """Return the worker's pod: Kubernetes deletes idle Jobs when it is gone."""
    name, uid = os.environ.get(OWNER_NAME), os.environ.get(OWNER_UID)
    if not (name and uid):
        return None
    return {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}


def assignment(job: Object, attempt: UUID) -> str:
    """Return the assignment that makes a standby the Job of a flow run: one line, without a secret.

    It has the variables that name the flow run, those from labels that its pod does not have yet,
    and those that refer to one of them.
    """
    labels = job["spec"]["template"]["metadata"].get("labels", {})
    environment: dict[str, str] = {}
    for entry in container(job).get("env", []):
        name, value = entry["name"], entry.get("value") or ""
        if (label := _label_of(entry)) is not None:
            if is_of_run(label):
                environment[name] = labels.get(label, "")
        elif name in RUN_VARIABLES or any(f"$({other})" in value for other in environment):
            environment[name] = value
    return json.dumps({"attempt": str(attempt), pod.ENVIRONMENT: environment})


def _label_of(entry: Object) -> str | None:
    """Return the label of the pod that a variable has as its value."""
    path = ((entry.get("valueFrom") or {}).get("fieldRef") or {}).get("fieldPath", "")
    found = re.fullmatch(r"metadata\.labels\['(.+)'\]", path)
    return found[1] if found else None


def job_name(worker_name: str, slot: int, before: str) -> str:
    """Return the name of the Job that fills a slot after another one.

    Two workers that replace the same Job choose the same name, and Kubernetes accepts one of them.
    """
    prefix = re.sub(r"[^a-z0-9-]+", "-", worker_name.lower()).strip("-")[:40].strip("-")
    return f"{prefix or 'flow'}-standby-{slot}-{_digest(before)[:8]}"


def container(job: Object) -> Object:
    """Return the container of a Job in which the flow runs."""
    found: Object = job["spec"]["template"]["spec"]["containers"][0]
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
