"""CPU time and memory on the node of a kind cluster by what used it, as the kubelet counts it.

The kubelet keeps the total of all pods, those that are gone included. So what no pod that lasts
has used is that of flow pods.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from scripts import kind

FLOW_PODS = "flow pods"
COMPONENT = "app.kubernetes.io/component"
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
OTHER_PODS = "other pods"
REST = "kubelet, container runtime"
INTERVAL_SECONDS = 2
PATIENCE_SECONDS = 60
"""The kubelet reads each counter every 10 to 20 seconds."""

Seconds = dict[str, float]
"""CPU seconds, by what used them."""


def by_size(seconds: Seconds) -> list[tuple[str, float]]:
    """Return the parts with their CPU seconds, the largest first."""
    return sorted(seconds.items(), key=lambda each: -each[1])


class _TooOldError(Exception):
    """A counter was read before the moment."""


@dataclass(frozen=True)
class Usage:
    """CPU seconds since the start of the node, and bytes of memory of pods that last."""

    at: datetime
    seconds: Seconds
    memory: dict[str, int]

    def since(self, earlier: "Usage") -> tuple[float, Seconds]:
        """Return the seconds that have passed, and the CPU seconds used in them."""
        used = {part: cpu - earlier.seconds.get(part, 0) for part, cpu in self.seconds.items()}
        return (self.at - earlier.at).total_seconds(), used


def read(context: str, moment: datetime) -> Usage:
    """Return the first usage in which every counter is younger than the moment."""
    for attempt in Retrying(
        retry=retry_if_exception_type(_TooOldError),
        stop=stop_after_delay(PATIENCE_SECONDS),
        wait=wait_fixed(INTERVAL_SECONDS),
        reraise=True,
    ):
        with attempt:
            return _read(context, moment)
    raise AssertionError  # the loop returns or raises


def _read(context: str, moment: datetime) -> Usage:
    node = f"{context.removeprefix(kind.context_of(''))}-control-plane"
    pods = json.loads(kind.kubectl(context, "get", "pods", "--output", "json"))["items"]
    parts = {pod["metadata"]["name"]: _component(pod["metadata"]) for pod in pods}
    path = f"/api/v1/nodes/{node}/proxy/stats/summary"
    summary = json.loads(kind.kubectl(context, "get", "--raw", path))
    (pods_in_all,) = (
        each for each in summary["node"]["systemContainers"] if each["name"] == "pods"
    )
    lasting = [
        (part, pod) for pod in summary["pods"] if (part := _part(pod["podRef"], parts)) != FLOW_PODS
    ]
    counters = [summary["node"], pods_in_all, *(pod for _, pod in lasting)]
    if min(datetime.fromisoformat(each["cpu"]["time"]) for each in counters) < moment:
        raise _TooOldError
    seconds: Seconds = defaultdict(float)
    memory: dict[str, int] = defaultdict(int)
    for part, pod in lasting:
        seconds[part] += _seconds(pod)
        memory[part] += int(pod["memory"]["workingSetBytes"])
    seconds[FLOW_PODS] = _seconds(pods_in_all) - sum(seconds.values())
    seconds[REST] = _seconds(summary["node"]) - sum(seconds.values())
    return Usage(datetime.fromisoformat(summary["node"]["cpu"]["time"]), seconds, memory)


def _component(metadata: Mapping[str, Any]) -> str:
    component = metadata.get("labels", {}).get(COMPONENT, OTHER_PODS)
    return FLOW_PODS if component == "flow-run" else str(component)


def _part(pod: Mapping[str, str], parts: Mapping[str, str]) -> str:
    if pod["namespace"] == kind.NAMESPACE:
        return parts.get(pod["name"], FLOW_PODS)  # a flow pod may be gone since
    if pod["name"].startswith(CONTROL_PLANE):
        return "control plane of Kubernetes"
    return OTHER_PODS


def _seconds(of: Mapping[str, Any]) -> float:
    return float(of["cpu"]["usageCoreNanoSeconds"]) / 1e9
