"""Stands in for kube-state-metrics in a pod: those of its metrics that the chart uses.

Each scrape reads the objects from the Kubernetes API. The standard library is enough for it.
"""

import json
import ssl
from collections.abc import Iterator
from datetime import datetime
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
APPS, BATCH, CORE = "/apis/apps/v1", "/apis/batch/v1", "/api/v1"
FACTORS = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")

Sample = tuple[str, dict[str, str], float]


def items(path: str) -> list[Any]:
    """The objects of one kind in all namespaces."""
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    api = HTTPSConnection("kubernetes.default.svc", timeout=10, context=context)
    token = (ACCOUNT / "token").read_text()
    api.request("GET", path, headers={"Authorization": f"Bearer {token}"})
    with api.getresponse() as answer:
        return list(json.load(answer)["items"])


def quantity(text: str) -> float:
    """A quantity of Kubernetes as a number."""
    for suffix, factor in sorted(FACTORS.items(), key=lambda each: -len(each[0])):
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def seconds(time: str) -> float:
    """A time of Kubernetes as seconds since 1970."""
    return datetime.fromisoformat(time).timestamp()


def samples() -> Iterator[Sample]:
    for each in items(f"{APPS}/deployments"):
        labels = own(each, "deployment")
        yield "kube_deployment_spec_replicas", labels, each["spec"]["replicas"]
        available = each["status"].get("availableReplicas", 0)
        yield "kube_deployment_status_replicas_available", labels, available
    for each in items(f"{BATCH}/jobs"):
        for owner in each["metadata"].get("ownerReferences", []):
            its = {"owner_kind": owner["kind"], "owner_name": owner["name"]}
            yield "kube_job_owner", own(each, "job_name") | its, 1
        for condition in each["status"].get("conditions", []):
            if condition["type"] == "Failed":
                for value in ("true", "false", "unknown"):
                    labels = own(each, "job_name") | {"condition": value}
                    yield "kube_job_failed", labels, condition["status"].lower() == value
    for each in items(f"{BATCH}/cronjobs"):
        labels = own(each, "cronjob")
        yield "kube_cronjob_created", labels, seconds(each["metadata"]["creationTimestamp"])
        for name, key in (
            ("kube_cronjob_status_last_schedule_time", "lastScheduleTime"),
            ("kube_cronjob_status_last_successful_time", "lastSuccessfulTime"),
        ):
            if time := each["status"].get(key):
                yield name, labels, seconds(time)
    for each in items(f"{CORE}/pods"):
        yield from of_pod(each)


def of_pod(pod: Any) -> Iterator[Sample]:
    labels = own(pod, "pod")
    for phase in PHASES:
        yield "kube_pod_status_phase", labels | {"phase": phase}, pod["status"]["phase"] == phase
    for container in pod["spec"]["containers"]:
        for resource, limit in container.get("resources", {}).get("limits", {}).items():
            its = {"container": container["name"], "resource": resource}
            yield "kube_pod_container_resource_limits", labels | its, quantity(limit)
    for status in pod["status"].get("containerStatuses", []):
        its = {"container": status["name"]}
        yield "kube_pod_container_status_restarts_total", labels | its, status["restartCount"]


def own(each: Any, label: str) -> dict[str, str]:
    """The labels that name an object."""
    return {"namespace": each["metadata"]["namespace"], label: each["metadata"]["name"]}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        lines = (
            f"{name}{{{','.join(f'{key}={json.dumps(value)}' for key, value in labels.items())}}}"
            f" {float(value)}\n"
            for name, labels, value in samples()
        )
        body = "".join(lines).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8080), Handler).serve_forever()
