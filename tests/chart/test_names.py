"""Short names of the Hamilton UI's objects, and names that an upgrade must not change."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.charts import COMPONENT, Object, Release, env, labels, pod_template, render

# Volumes, Secrets, databases and selectors of 0.1.0, which a live cluster depends on.
RECORDED = yaml.safe_load((Path(__file__).parent / "names-0.1.0.yaml").read_text())
VALUES: Object = {
    "server": {"replicas": 2},
    "valkey": {"enabled": True},
    "gitServer": {"enabled": True},
    "hamiltonUi": {"service": {"type": "NodePort", "nodePort": 30841}},
}
EXPOSED: Object = {
    "server": {"host": "prefect.example.org"},
    "hamiltonUi": {"host": "hamilton.example.org", "replicas": 2, "s3": {"bucket": "hamilton"}},
    "ingress": {"enabled": True, "tls": True},
    "gateway": {"enabled": True, "parentRefs": [{"name": "shared"}]},
}


@pytest.fixture(scope="module")
def release() -> Release:
    return render(VALUES, name="prefect-hamilton")


@pytest.fixture(scope="module")
def exposed() -> Release:
    return render(EXPOSED, name="prefect-hamilton")


def values_of(node: Any, key: str) -> Iterator[Any]:
    """Yield what stands under a key, however deep."""
    if isinstance(node, dict):
        if key in node:
            yield node[key]
        for child in node.values():
            yield from values_of(child, key)
    elif isinstance(node, list):
        for child in node:
            yield from values_of(child, key)


def secrets(release: Release) -> set[str]:
    """Return the names of the Secrets that pods read."""
    references = values_of(release.objects, "secretKeyRef")
    return {r["name"] for r in references} | set(values_of(release.objects, "secretName"))


def selectors(release: Release) -> dict[str, dict[str, str]]:
    """Return the selectors of Deployments and StatefulSets by component."""
    workloads = [*release.of("Deployment"), *release.of("StatefulSet")]
    return {labels(o)[COMPONENT]: o["spec"]["selector"]["matchLabels"] for o in workloads}


@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "ServiceAccount", "StatefulSet"])
def test_an_upgrade_keeps_volumes_accounts_and_databases(release: Release, kind: str) -> None:
    assert sorted(o["metadata"]["name"] for o in release.of(kind)) == RECORDED[kind]


def test_an_upgrade_keeps_secrets_claims_and_selectors(release: Release) -> None:
    assert sorted(secrets(release)) == RECORDED["Secret"]
    assert sorted(set(values_of(release.objects, "claimName"))) == RECORDED["claims"]
    assert selectors(release) == RECORDED["selectors"]


def test_an_upgrade_keeps_the_addresses_that_flow_pods_have(release: Release) -> None:
    services = {o["metadata"]["name"]: o["spec"] for o in release.of("Service")}
    assert services.keys() >= set(RECORDED["Service"])
    former, now = services["prefect-hamilton-hamilton-ui"], services["prefect-hamilton-ui"]
    assert former["selector"] == now["selector"]
    assert former["ports"][0]["port"] == now["ports"][0]["port"]
    ui = pod_template(release.get("Deployment", "prefect-hamilton-ui"))
    assert ui is not None
    hosts = env(ui["spec"]["containers"][0])["HAMILTON_ALLOWED_HOSTS"].split(",")
    assert {"prefect-hamilton-hamilton-ui", "prefect-hamilton-ui"} <= set(hosts)


def test_the_former_service_gives_up_its_node_port_first(release: Release) -> None:
    """Kubernetes refuses a port that another Service has."""
    services = [o for o in release.of("Service") if labels(o)[COMPONENT] == "hamilton-ui"]
    ports = [(o["metadata"]["name"], o["spec"]["ports"][0].get("nodePort")) for o in services]
    assert ports == [("prefect-hamilton-hamilton-ui", None), ("prefect-hamilton-ui", 30841)]


def test_objects_of_the_hamilton_ui_have_short_names(exposed: Release) -> None:
    kept = ("PersistentVolumeClaim", "Service", "ServiceAccount")
    names = {
        (o["kind"], o["metadata"]["name"])
        for o in exposed.objects
        if labels(o).get(COMPONENT, "").startswith("hamilton-ui") and o["kind"] not in kept
    }
    assert names == {
        ("CronJob", "prefect-hamilton-ui-retention"),
        ("Deployment", "prefect-hamilton-ui"),
        ("HTTPRoute", "prefect-hamilton-ui"),
        ("NetworkPolicy", "prefect-hamilton-ui"),
        ("NetworkPolicy", "prefect-hamilton-ui-retention"),
        ("PodDisruptionBudget", "prefect-hamilton-ui"),
    }


def test_ingress_and_routes_lead_to_the_new_service_with_the_certificate_of_before(
    exposed: Release,
) -> None:
    (ingress,) = exposed.of("Ingress")
    assert [tls["secretName"] for tls in ingress["spec"]["tls"]] == [
        "prefect-hamilton-server-tls",
        "prefect-hamilton-hamilton-ui-tls",
    ]
    backends = values_of(ingress["spec"]["rules"], "service")
    assert [b["name"] for b in backends] == ["prefect-hamilton-server", "prefect-hamilton-ui"]
    (route,) = (r for r in exposed.of("HTTPRoute") if r["metadata"]["name"].endswith("-ui"))
    assert route["spec"]["rules"][0]["backendRefs"][0]["name"] == "prefect-hamilton-ui"


def test_workers_of_two_pools_have_two_names_of_allowed_length() -> None:
    pools = ("analytics-team-alpha", "analytics-team-beta")
    release = render({"workers": {pool: {} for pool in pools}}, name="data-platform-production")
    workers = [o for o in release.of("Deployment") if labels(o)[COMPONENT].startswith("worker")]
    names = {o["metadata"]["name"] for o in workers}
    assert len(names) == len(pools)
    assert all(len(name) <= 63 for name in names)
