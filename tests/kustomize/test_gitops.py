"""What Argo CD and Flux are pointed at: valid, with least rights, and at things that are there."""

import functools
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.chart.charts import CHART, Object, containers, pod_template, render, validator
from tests.chart.conftest import profile_values
from tests.kustomize.kustomizations import (
    KUSTOMIZE,
    OVERLAYS,
    ROOT,
    built,
    namespace,
    overlay,
    parse,
    with_values,
)

GITOPS = KUSTOMIZE / "gitops"
FILES = sorted(path for path in GITOPS.rglob("*.yaml") if path.name != ".sops.yaml")
CLUSTER = "https://kubernetes.default.svc"


@functools.cache
def schemas() -> dict[str, Any]:
    packed = (Path(__file__).parent / "crds" / "gitops.json.gz").read_bytes()
    return dict(json.loads(gzip.decompress(packed)))


def objects_of(path: Path) -> list[Object]:
    return [o for o in parse(path.read_text()) if "kustomize.config.k8s.io" not in o["apiVersion"]]


def all_of(kind: str) -> Iterator[Object]:
    for path in FILES:
        yield from (o for o in objects_of(path) if o["kind"] == kind and "metadata" in o)


def errors(obj: Object) -> list[str]:
    """Return what the schema of an object's kind says against it."""
    kind = f"{obj['apiVersion']}/{obj['kind']}"
    if kind in schemas():
        check = jsonschema.Draft7Validator(schemas()[kind])
    else:
        check = validator("1.37", kind)
    return [f"{'.'.join(map(str, e.path))}: {e.message[:300]}" for e in check.iter_errors(obj)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(GITOPS)))
def test_it_is_valid(path: Path) -> None:
    for obj in objects_of(path):
        if obj["kind"] != "Namespace":
            assert errors(obj) == []


def test_a_field_that_is_not_known_is_noticed() -> None:
    (release,) = all_of("HelmRelease")
    release["spec"]["upgrade"]["remediation"]["retry"] = 3
    assert errors(release)
    application = next(all_of("Application"))
    application["spec"]["syncPolicy"]["automated"]["selfheal"] = True
    assert errors(application)


# --- Argo CD


def applications() -> list[Object]:
    """Return the Applications, those that the ApplicationSet makes too."""
    found = list(all_of("Application"))
    for generated in all_of("ApplicationSet"):
        for element in generated["spec"]["generators"][0]["list"]["elements"]:
            text = yaml.safe_dump(generated["spec"]["template"])
            filled = re.sub(r"\{\{ \.(\w+) \}\}", lambda m, e=element: str(e[m[1]]), text)
            found.append({"kind": "Application", **yaml.safe_load(filled)})
    return found


@pytest.mark.parametrize("application", applications(), ids=lambda a: a["metadata"]["name"])
def test_an_application_syncs_by_itself_what_is_there(application: Object) -> None:
    spec = application["spec"]
    (project,) = all_of("AppProject")
    assert spec["project"] == project["metadata"]["name"]
    assert spec["source"]["repoURL"] in project["spec"]["sourceRepos"]
    assert spec["destination"] in project["spec"]["destinations"]
    assert spec["syncPolicy"]["automated"] == {"prune": True, "selfHeal": True}
    assert spec["syncPolicy"]["retry"]["refresh"] is True
    path = ROOT / spec["source"]["path"]
    if path == CHART:
        helm = spec["source"]["helm"]
        # Names and selectors are those of the release's name.
        assert helm["releaseName"] == "prefect-hamilton"
        (values,) = helm["valueFiles"]
        assert (path / values).is_file()
        path = (path / values).resolve().parent
    assert spec["destination"]["namespace"] == namespace(built(path))


def test_the_project_has_the_least_rights() -> None:
    (project,) = all_of("AppProject")
    spec = project["spec"]
    assert "*" not in yaml.safe_dump(spec)
    needed = {
        (obj["apiVersion"].rpartition("/")[0], obj["kind"])
        for obj in [
            *render(profile_values("everything")).objects,
            *(obj for name in OVERLAYS for obj in overlay(name)),
            *built(GITOPS / "secrets" / "external-secrets"),
        ]
        if obj["kind"] != "Pod"
    }
    allowed = {(r["group"], r["kind"]) for r in spec["namespaceResourceWhitelist"]}
    assert allowed | {("", "Namespace")} == needed
    assert spec["clusterResourceWhitelist"] == [{"group": "", "kind": "Namespace"}]
    used = {a["spec"]["destination"]["namespace"] for a in applications()}
    assert {d["namespace"] for d in spec["destinations"]} == used
    assert {d["server"] for d in spec["destinations"]} == {CLUSTER}


# Defaults that the API server adds to items of lists (CRDs of Gateway API 1.4 and External Secrets
# 0.19). Argo CD compares a list as a whole: one that is not written out is a difference for ever.
DEFAULTS_IN_LISTS: dict[str, dict[str, dict[str, Any]]] = {
    "ExternalSecret": {
        "data.remoteRef": {
            "conversionStrategy": "Default",
            "decodingStrategy": "None",
            "metadataPolicy": "None",
        }
    },
    "HTTPRoute": {
        "parentRefs": {"group": "gateway.networking.k8s.io", "kind": "Gateway"},
        "rules": {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]},
        "rules.backendRefs": {"group": "", "kind": "Service", "weight": 1},
    },
}


GATEWAY: Object = {
    "gateway": {"enabled": True, "parentRefs": [{"name": "web", "namespace": "gateways"}]},
    "server": {"host": "prefect.example.org"},
    "hamiltonUi": {"host": "hamilton.example.org"},
}


def items(node: Any, path: list[str]) -> Iterator[Object]:
    """Yield what is at a path, in every item of the lists on the way."""
    if isinstance(node, list):
        for item in node:
            yield from items(item, path)
    elif path:
        yield from items(node[path[0]], path[1:])
    else:
        yield node


def test_defaults_in_lists_of_custom_resources_are_written_out() -> None:
    objects = [*built(GITOPS / "secrets" / "external-secrets"), *with_values(GATEWAY)]
    for kind, places in DEFAULTS_IN_LISTS.items():
        found = [obj for obj in objects if obj["kind"] == kind]
        assert found, kind
        for obj in found:
            for place, defaults in places.items():
                for item in items(obj["spec"], place.split(".")):
                    assert item.items() >= defaults.items(), (obj["metadata"]["name"], place)


# --- Flux


def test_kustomizations_point_at_what_is_there() -> None:
    kustomizations = {k["metadata"]["name"]: k["spec"] for k in all_of("Kustomization")}
    sources = {s["metadata"]["name"] for s in all_of("GitRepository")}
    assert kustomizations.keys() == {"prefect-secrets", "prefect-production", "prefect-staging"}
    for name, spec in kustomizations.items():
        assert (ROOT / spec["path"] / "kustomization.yaml").is_file(), name
        assert spec["sourceRef"]["name"] in sources
        assert spec["prune"] is True
        # Whoever depends on it waits until it works.
        assert spec.get("wait") or spec["healthChecks"]
        assert {d["name"] for d in spec.get("dependsOn", [])} <= kustomizations.keys()
    assert kustomizations["prefect-production"]["dependsOn"] == [{"name": "prefect-secrets"}]


def test_the_resources_of_all_kustomizations_are_in_fluxs_artifact() -> None:
    """The GitRepository leaves everything but kustomize/ out."""
    for path in KUSTOMIZE.rglob("kustomization.yaml"):
        for each in yaml.safe_load(path.read_text())["resources"]:
            assert (path.parent / each).resolve().is_relative_to(KUSTOMIZE), (path, each)


def test_secrets_are_healthy_before_production_is_applied() -> None:
    (spec,) = [
        k["spec"]
        for k in objects_of(GITOPS / "flux" / "kustomizations.yaml")
        if k["metadata"]["name"] == "prefect-secrets"
    ]
    made = {
        (o["apiVersion"], o["kind"], o["metadata"]["name"], o["metadata"]["namespace"])
        for o in built(ROOT / spec["path"])
        if o["kind"] == "ExternalSecret"
    }
    checked = {
        (c["apiVersion"], c["kind"], c["name"], c["namespace"]) for c in spec["healthChecks"]
    }
    assert checked == made


def test_no_object_has_two_owners() -> None:
    """Two Kustomizations that apply one object would take it from each other for ever."""
    paths = [k["spec"]["path"] for k in objects_of(GITOPS / "flux" / "kustomizations.yaml")]
    seen: set[tuple[str, ...]] = set()
    for path in paths:
        for obj in built(ROOT / path):
            meta = obj["metadata"]
            key = (obj["kind"], meta.get("namespace", ""), meta["name"])
            assert key not in seen, key
            seen.add(key)


def test_the_helm_release_rolls_back_tests_and_heals() -> None:
    """A failed bootstrap rolls nothing back: it may be a mistake of one team."""
    (release,) = all_of("HelmRelease")
    spec = release["spec"]
    charts = {o["metadata"]["name"] for o in all_of("OCIRepository")}
    assert spec["chartRef"]["name"] in charts
    assert spec["install"]["remediation"]["retries"] == 3
    remediation = spec["upgrade"]["remediation"]
    assert remediation == {"retries": 3, "remediateLastFailure": True, "strategy": "rollback"}
    assert all(spec[action]["disableWaitForJobs"] for action in ("install", "upgrade"))
    assert spec["test"] == {"enable": True, "ignoreFailures": True}
    assert spec["driftDetection"]["mode"] == "enabled"
    values = yaml.safe_load((KUSTOMIZE / "overlays" / "staging" / "values.yaml").read_text())
    assert spec["values"] == values
    assert render(spec["values"], name=spec["releaseName"]).objects


# --- Secrets


def wanted_keys() -> dict[str, set[str]]:
    """Return the keys of each Secret that production's pods need."""
    found: dict[str, set[str]] = {}
    for obj in overlay("production"):
        for container in containers(t) if (t := pod_template(obj)) else ():
            for variable in container.get("env", []):
                source = variable.get("valueFrom", {}).get("secretKeyRef")
                if source and not source.get("optional"):
                    found.setdefault(source["name"], set()).add(source["key"])
        if obj["kind"] == "ServiceMonitor":
            for source in obj["spec"]["endpoints"][0].get("basicAuth", {}).values():
                found.setdefault(source["name"], set()).add(source["key"])
    return found


def test_external_secrets_give_production_what_it_reads() -> None:
    given = {}
    for obj in built(GITOPS / "secrets" / "external-secrets"):
        if obj["kind"] == "ExternalSecret":
            template = obj["spec"]["target"].get("template", {}).get("data")
            keys = template or {entry["secretKey"]: "" for entry in obj["spec"]["data"]}
            given[obj["metadata"]["name"]] = set(keys)
            fetched = {entry["secretKey"] for entry in obj["spec"]["data"]}
            used = set(re.findall(r"\.(\w+)", " ".join(re.findall(r"\{\{.*?\}\}", str(template)))))
            assert used <= fetched, "a template names what is not fetched"
    assert given == wanted_keys()


def test_the_sops_example_gives_production_what_it_reads_and_holds_no_secret() -> None:
    folder = GITOPS / "secrets" / "sops"
    secrets = objects_of(folder / "secrets.example.yaml")
    assert {s["metadata"]["name"]: set(s["stringData"]) for s in secrets} == wanted_keys()
    for secret in secrets:
        for key, value in secret["stringData"].items():
            assert "<" in value or key == "username"
    (rule,) = yaml.safe_load((folder / ".sops.yaml").read_text())["creation_rules"]
    resources = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert [r for r in resources if re.search(rule["path_regex"], r)] == ["secrets.enc.yaml"]
    assert re.search(rule["encrypted_regex"], "stringData")
    assert not re.search(rule["encrypted_regex"], "metadata")
