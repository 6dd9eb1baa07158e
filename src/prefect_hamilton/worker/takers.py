"""Which process of a worker took a flow run up: the run's state says it.

The pods of a work pool's worker are one worker in Prefect. A run that one of them took up before it
was killed occupies a slot of the pool until another one finds that no Job will come.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from kubernetes_asyncio.client import ApiClient
from prefect.client.schemas.objects import State
from prefect.states import Pending

from prefect_hamilton.worker import kubernetes
from prefect_hamilton.worker.standby import OWNER_NAME

FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes writes the namespace of a pod and the authority of its cluster."""

PROCESS = uuid4().hex[:12]
"""A container that starts again has the name of the one before it."""

_MESSAGE = "Taken up by the worker's pod {}/{} in cluster {}, process {}."
_TAKEN_UP = re.compile(re.escape(_MESSAGE).replace(r"\{\}", r"(\S+?)"))


@dataclass(frozen=True)
class Taker:
    """A process of a worker that runs in a pod."""

    namespace: str
    pod: str
    cluster: str
    process: str

    @classmethod
    def this(cls) -> Self | None:
        """Return this process; None where it is in no pod, or may not list the pods beside it."""
        pod, namespace = os.environ.get(OWNER_NAME), FOLDER / "namespace"
        if not (pod and namespace.exists()):
            return None
        cluster = kubernetes.cluster_with((FOLDER / "ca.crt").read_bytes())
        return cls(namespace.read_text().strip(), pod, cluster, PROCESS)

    @classmethod
    def of(cls, taken_up: State[Any]) -> Self | None:
        """Return who set the state; None if it does not say so."""
        found = _TAKEN_UP.fullmatch(taken_up.message or "")
        return cls(*found.groups()) if found else None

    def pending(self) -> State[Any]:
        """Return the state with which it takes a run up."""
        return Pending(
            message=_MESSAGE.format(self.namespace, self.pod, self.cluster, self.process)
        )


async def is_gone(client: ApiClient, taken_up: State[Any]) -> bool:
    """Whether the process that took a run up, by this state, has ended.

    False if it is not known: its pod is in another cluster or namespace, for example.
    """
    taker, this = Taker.of(taken_up), Taker.this()
    if taker is None or this is None or kubernetes.cluster_of(client) != this.cluster:
        return False
    if (taker.cluster, taker.namespace) != (this.cluster, this.namespace):
        return False
    if taker.pod == this.pod:
        return taker.process != this.process
    return await kubernetes.is_pod_gone(client, taker.pod, taker.namespace)
