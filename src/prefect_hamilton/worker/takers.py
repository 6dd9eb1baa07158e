"""Which pod of a worker took a flow run up: the run's state says it.

The pods of a work pool's worker are one worker in Prefect. A run that one of them took up before it
was killed occupies a slot of the pool until another one finds that no Job will come.
"""

import re
import socket
from datetime import datetime
from pathlib import Path
from typing import Any

from kubernetes_asyncio.client import ApiClient
from prefect.client.schemas.objects import State
from prefect.states import Pending

from prefect_hamilton.worker import kubernetes

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where Kubernetes writes the namespace of this pod."""

_TAKEN_UP = "Taken up by the worker's pod {}."
_POD = re.compile(r"Taken up by the worker's pod (\S+)\.")


def pending() -> State[Any]:
    """Return the state Pending that says that this pod takes the run up."""
    return Pending(message=_TAKEN_UP.format(socket.gethostname()))


async def is_gone(client: ApiClient, taken_up: State[Any], process_began: datetime) -> bool:
    """Whether the process that took a run up, by this state, has ended.

    False if that is not known: another worker took it up, or this one may not list the pods of its
    own namespace.
    """
    found = _POD.fullmatch(taken_up.message or "")
    if found is None or not NAMESPACE_FILE.exists():
        return False
    pod = found[1]
    if pod == socket.gethostname():  # its container may have started again
        return taken_up.timestamp < process_began
    return await kubernetes.is_pod_gone(client, pod, NAMESPACE_FILE.read_text().strip())
