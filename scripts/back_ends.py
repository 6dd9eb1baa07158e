"""Prometheus, Alertmanager, VictoriaLogs, Jaeger and a collector in a kind cluster.

`make kind MONITORING=1` installs them from `scripts/monitoring/`, and so do the tests in
`tests/monitoring/`. The Prometheus Operator runs Prometheus and Alertmanager.
"""

from pathlib import Path
from typing import NamedTuple, Protocol

import yaml

from scripts import chart_images

NAMESPACE = "monitoring"
MANIFESTS = Path(__file__).parent / "monitoring"
VALUES = MANIFESTS / "values.yaml"
"""Of the chart: what the back ends show."""
OPERATOR = (
    "https://github.com/prometheus-operator/prometheus-operator/releases/download/v0.85.0/"
    "bundle.yaml"
)
KINDS = ("prometheuses", "alertmanagers", "servicemonitors", "prometheusrules")


class Kubectl(Protocol):
    """Runs kubectl on the cluster; returns its output."""

    def __call__(self, *arguments: str) -> str:
        """Run it with these arguments. Raises an exception if it fails."""


class BackEnd(NamedTuple):
    """What a person opens in a browser."""

    title: str
    port: int
    """Of 127.0.0.1."""
    node_port: int
    path: str = ""


BACK_ENDS = {
    "prometheus": BackEnd("Prometheus", 9090, 30909),
    "alertmanager": BackEnd("Alertmanager", 9093, 30903),
    "victoria-logs": BackEnd("VictoriaLogs", 9428, 30428, "/select/vmui"),
    "jaeger": BackEnd("Jaeger", 16686, 30686),
}
PORTS = {each.node_port: each.port for each in BACK_ENDS.values()}
"""Ports of 127.0.0.1 by port of the node."""


def images(kubectl: Kubectl) -> list[str]:
    """Return the images of the back ends, without those of the operator."""
    images = set()
    for each in yaml.safe_load_all(kubectl("kustomize", str(MANIFESTS))):
        images |= set(chart_images.found(each))
        if each["kind"] in {"Prometheus", "Alertmanager"}:
            images.add(f"quay.io/prometheus/{each['kind'].lower()}:{each['spec']['version']}")
    return sorted(images)


def has_operator(kubectl: Kubectl) -> bool:
    """Return whether the cluster has the kinds of the Prometheus Operator."""
    found = kubectl("get", "crd", "-o", "name").split()
    return {f"customresourcedefinition.apiextensions.k8s.io/{_crd(each)}" for each in KINDS} <= set(
        found
    )


def install(kubectl: Kubectl, operator: str, timeout: int) -> None:
    """Install the back ends, and before them the operator from a file or URL if it is missing.

    Returns when they are ready.
    """
    if not has_operator(kubectl):
        # Server-side, as the definitions are too large for an annotation.
        kubectl("apply", "--namespace=default", "--server-side", "-f", operator)
        for each in KINDS:
            kubectl("wait", f"crd/{_crd(each)}", "--for=create", "--timeout=60s")
            kubectl("wait", f"crd/{_crd(each)}", "--for=condition=Established", "--timeout=60s")
    kubectl("apply", f"--namespace={NAMESPACE}", "-k", str(MANIFESTS))
    here = (f"--namespace={NAMESPACE}", f"--timeout={timeout}s")
    for each in ("daemonset/collector", "deployment/victoria-logs", "deployment/jaeger"):
        kubectl("rollout", "status", each, *here)
    for each in ("prometheus/prometheus", "alertmanager/alertmanager"):
        kubectl("wait", each, "--for=condition=Available", *here)


def addresses() -> list[str]:
    """Return a line for each back end with its address."""
    lines = [
        f"{each.title:13}http://localhost:{each.port}{each.path}" for each in BACK_ENDS.values()
    ]
    files = chart_images.CHART / "files" / "dashboards"
    return [*lines, f"Dashboards   import {files}/*.json into a Grafana"]


def _crd(kind: str) -> str:
    return f"{kind}.monitoring.coreos.com"
