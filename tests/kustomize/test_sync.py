"""What Argo CD, Flux and `kubectl apply` make of the objects: order, hooks, upgrades, changes.

No cluster is needed: the rules are those of Argo CD's documentation (sync phases and waves, Helm
hooks) and of Kubernetes' API (fields that cannot be changed).
"""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import render
from tests.chart.charts import COMPONENT, Object, containers, labels, pod_template, template_text
from tests.kustomize.kustomizations import OVERLAYS, overlay, overlay_values, parse, with_values

HOOK = "argocd.argoproj.io/hook"
WAVE = "argocd.argoproj.io/sync-wave"
HELM_HOOK = "helm.sh/hook"
# Argo CD, docs/user-guide/helm.md, "Helm Hooks".
PHASES_OF_HELM_HOOKS = {
    "crd-install": "PreSync",
    "pre-install": "PreSync",
    "pre-upgrade": "PreSync",
    "post-upgrade": "PostSync",
    "post-install": "PostSync",
    "post-delete": "PostDelete",
    "pre-delete": "PreDelete",
    "pre-rollback": None,
    "post-rollback": None,
    "test": None,
    "test-success": None,
}
PHASES = ("PreSync", "Sync", "PostSync")


def annotations(obj: Object) -> dict[str, str]:
    return dict(obj["metadata"].get("annotations", {}))


def phase(obj: Object) -> str | None:
    """Return the phase in which Argo CD applies an object; None when it never does."""
    notes = annotations(obj)
    if HOOK in notes:
        return notes[HOOK]
    if HELM_HOOK in notes:
        phases = {PHASES_OF_HELM_HOOKS[hook.strip()] for hook in notes[HELM_HOOK].split(",")}
        assert len(phases) == 1
        return phases.pop()
    return "Sync"


def steps(objects: Sequence[Object]) -> list[list[Object]]:
    """Return the objects of each step of a sync: Argo CD waits for one to be healthy."""
    found: defaultdict[tuple[int, int], list[Object]] = defaultdict(list)
    for obj in objects:
        if (when := phase(obj)) in PHASES:
            found[PHASES.index(str(when)), int(annotations(obj).get(WAVE, 0))].append(obj)
    return [found[step] for step in sorted(found)]


def needs(obj: Object) -> Iterator[tuple[str, str]]:
    """Yield kind and name of what must be there before the object is healthy."""
    if obj["kind"] == "RoleBinding":
        yield "Role", obj["roleRef"]["name"]
        yield from ((s["kind"], s["name"]) for s in obj["subjects"])
    if (template := pod_template(obj)) is None:
        return
    spec = template["spec"]
    yield "ServiceAccount", spec.get("serviceAccountName", "default")
    for volume in spec.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for container in containers(template):
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {})
            for key, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                if key in source:
                    yield kind, source[key]["name"]


def gives(obj: Object) -> Iterator[tuple[str, str]]:
    """Yield kind and name of what there is when the object is healthy."""
    yield obj["kind"], obj["metadata"]["name"]
    if obj["kind"] == "Job":
        for container in containers(obj["spec"]["template"]):
            for variable in container.get("env", []):
                if variable["name"].startswith("WANTED_SECRET_"):
                    yield "Secret", yaml.safe_load(variable["value"])["name"]


def missing(objects: Sequence[Object], given: set[tuple[str, str]]) -> list[str]:
    """Return what a first sync would wait for in vain, step by step."""
    there = {("ServiceAccount", "default"), *given}
    found = []
    for step in steps(objects):
        there |= {each for obj in step for each in gives(obj)}
        found += [
            f"{obj['kind']}/{obj['metadata']['name']} needs {need}"
            for obj in step
            for need in needs(obj)
            if need not in there
        ]
    return found


# What production's Secrets come from is not part of the overlay: see gitops/secrets.
GIVEN = {
    "kind": set[tuple[str, str]](),
    "staging": set[tuple[str, str]](),
    "production": {
        ("Secret", f"prefect-hamilton-{name}")
        for name in ("auth", "flows-git", "hamilton-ui", "postgres", "valkey")
    },
}


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_first_sync_of_an_overlay_needs_nothing_later(name: str) -> None:
    assert missing(overlay(name), GIVEN[name]) == []
    assert {phase(obj) for obj in overlay(name)} == {"Sync"}, "a hook would run at each sync"


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_first_sync_of_the_chart_needs_nothing_later(name: str) -> None:
    objects = parse(template_text(overlay_values(name), name=render.RELEASE))
    assert missing(objects, GIVEN[name]) == []
    (test,) = [obj for obj in objects if phase(obj) != "Sync"]
    assert (test["kind"], phase(test)) == ("Pod", None), "only `helm test`, which is left out"


def test_a_hook_that_needs_a_later_object_is_noticed() -> None:
    objects = deepcopy(list(overlay("staging")))
    (job,) = [o for o in objects if o["kind"] == "Job" and labels(o)[COMPONENT] == "bootstrap"]
    job["metadata"]["annotations"] = {HELM_HOOK: "pre-install,pre-upgrade"}
    found = missing(objects, set())
    assert any("needs ('ConfigMap', 'prefect-hamilton-bootstrap')" in line for line in found)
    del job["metadata"]["annotations"]
    (job,) = [o for o in objects if o["kind"] == "Job" and labels(o)[COMPONENT] == "secrets"]
    job["metadata"]["annotations"] = {HOOK: "PostSync"}
    assert any(
        "needs ('Secret', 'prefect-hamilton-postgres')" in line for line in missing(objects, set())
    )


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_job_goes_away_by_itself(name: str) -> None:
    """A Job with a TTL that a sync finds gone is made, and run, again and again."""
    for obj in overlay(name):
        if obj["kind"] == "Job":
            assert "ttlSecondsAfterFinished" not in obj["spec"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_pruning_takes_no_data(name: str) -> None:
    for obj in overlay(name):
        is_volume = (
            obj["kind"] == "PersistentVolumeClaim" and labels(obj)[COMPONENT] != "git-server"
        )
        if is_volume or obj["kind"] == "Namespace":
            notes = annotations(obj)
            assert notes["argocd.argoproj.io/sync-options"] == "Delete=false,Prune=false"
            assert notes["kustomize.toolkit.fluxcd.io/prune"] == "disabled"
        if obj["kind"] == "StatefulSet":
            kept = obj["spec"]["persistentVolumeClaimRetentionPolicy"]
            assert kept == {"whenDeleted": "Retain", "whenScaled": "Retain"}


# --- changes


def changed(before: Sequence[Object], after: Sequence[Object]) -> set[str]:
    """Return the objects that a sync applies or prunes, Jobs without the hash of their names."""

    def texts(objects: Sequence[Object]) -> dict[str, str]:
        return {f"{o['kind']}/{o['metadata']['name']}": json.dumps(o) for o in objects}

    one, other = texts(before), texts(after)
    keys = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    return {re.sub(r"^(Job/.*)-[0-9a-z]{10}$", r"\1", key) for key in keys}


NAME = render.RELEASE
FLOWS: Object = {"flows": {"repository": "https://git.example.org/data/flows.git"}}


def patch(kind: str, name: str, text: str) -> list[Object]:
    """Return the patches of an overlay that changes one object."""
    return [{"target": {"kind": kind, "name": f"{NAME}-{name}"}, "patch": text}]


def flows_ref(ref: str) -> list[Object]:
    """Return the patches of an overlay that names the commit of the flows."""
    containers = [{"name": "bootstrap", "env": [{"name": "FLOWS_REF", "value": ref}]}]
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{NAME}-bootstrap"},
        "spec": {"template": {"spec": {"containers": containers}}},
    }
    return patch("Job", "bootstrap", yaml.safe_dump(job))


def test_a_new_commit_of_the_flows_runs_the_bootstrap_and_rolls_nothing() -> None:
    before = with_values(FLOWS, patches=flows_ref("main"))
    after = with_values(FLOWS, patches=flows_ref("a" * 40))
    assert changed(before, after) == {f"Job/{NAME}-bootstrap"}


def test_a_new_image_of_the_flows_runs_the_bootstrap_and_rolls_nothing() -> None:
    images = [{"name": "prefect-hamilton/flows", "newTag": "0.2.0"}]
    before, after = with_values(FLOWS), with_values(FLOWS, images=images)
    assert changed(before, after) == {f"Job/{NAME}-bootstrap"}
    (job,) = [o for o in after if o["metadata"]["name"].startswith(f"{NAME}-bootstrap-")]
    variables = job["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "FLOWS_IMAGE", "value": "prefect-hamilton/flows:0.2.0"} in variables


def test_a_new_image_of_prefect_rolls_what_runs_it() -> None:
    images = [{"name": "prefect-hamilton/prefect", "newTag": "0.2.0"}]
    assert changed(with_values({}), with_values({}, images=images)) == {
        f"Deployment/{NAME}-server",
        f"Deployment/{NAME}-worker-kubernetes",
        f"Job/{NAME}-bootstrap",
        f"Job/{NAME}-secrets",
    }


def test_a_workers_limit_rolls_that_worker_alone() -> None:
    text = "- {op: add, path: /spec/template/spec/containers/0/args/-, value: --limit=3}"
    after = with_values({}, patches=patch("Deployment", "worker-kubernetes", text))
    assert changed(with_values({}), after) == {f"Deployment/{NAME}-worker-kubernetes"}
    assert changed(with_values({}), with_values({"worker": {"limit": 3}})) == {
        f"Deployment/{NAME}-worker-kubernetes"
    }


def test_any_change_of_a_job_gives_it_a_new_name() -> None:
    """Also one for which the chart has no value."""
    text = "- {op: replace, path: /spec/backoffLimit, value: 3}"
    after = with_values({}, patches=patch("Job", "bootstrap", text))
    names = [
        {o["metadata"]["name"] for o in objects if o["kind"] == "Job"}
        for objects in (with_values({}), after)
    ]
    assert len(names[0] & names[1]) == 1, "the secrets' Job keeps its name"
    assert len(names[0] | names[1]) == 3


def test_a_value_that_changes_what_a_job_reads_runs_it_again() -> None:
    """The state of the bootstrap is in a ConfigMap: the Job's checksum follows it."""
    after = with_values({"flows": {"activeDeadlineSeconds": 60}})
    assert changed(with_values({}), after) == {
        f"ConfigMap/{NAME}-bootstrap",
        f"Job/{NAME}-bootstrap",
    }


# --- upgrades


def frozen(obj: Object) -> dict[str, Any]:
    """Return the fields of an object that Kubernetes does not let anybody change."""
    spec = obj.get("spec", {})
    match obj["kind"]:
        case "StatefulSet":
            free = (
                "minReadySeconds",
                "ordinals",
                "persistentVolumeClaimRetentionPolicy",
                "replicas",
                "revisionHistoryLimit",
                "template",
                "updateStrategy",
            )
            return {key: value for key, value in spec.items() if key not in free}
        case "Deployment":
            return {"selector": spec["selector"]}
        case "Job":
            free = ("activeDeadlineSeconds", "backoffLimit", "suspend", "ttlSecondsAfterFinished")
            return {key: value for key, value in spec.items() if key not in free}
        case "PersistentVolumeClaim":
            return {key: value for key, value in spec.items() if key != "resources"}
        case "RoleBinding":
            return {"roleRef": obj["roleRef"]}
        case _:
            return {}


def refused(before: Sequence[Object], after: Sequence[Object]) -> list[str]:
    """Return the objects that Kubernetes would not change from one to the other."""
    old = {(o["kind"], o["metadata"]["name"]): o for o in before}
    return [
        f"{obj['kind']}/{obj['metadata']['name']}"
        for obj in after
        if (was := old.get((obj["kind"], obj["metadata"]["name"]))) and frozen(was) != frozen(obj)
    ]


UPGRADED: Object = {
    "server": {"replicas": 2},
    "valkey": {"enabled": True},
    "gitServer": {"enabled": True},
}


@pytest.fixture
def next_version(tmp_path: Path) -> Path:
    """A copy of the chart one version on: other images, sizes, templates and Jobs."""
    chart = tmp_path / "chart"
    shutil.copytree(render.CHART, chart)
    for path, old, new in (
        ("Chart.yaml", "0.1.0", "0.2.0"),
        ("values.yaml", "tag: '17'", "tag: '17.6'"),
        ("values.yaml", "cpu: 25m", "cpu: 30m"),
        ("values.yaml", "activeDeadlineSeconds: 86400", "activeDeadlineSeconds: 3600"),
        ("templates/bootstrap/_helpers.tpl", "backoffLimit: 6", "backoffLimit: 5"),
    ):
        text = (chart / path).read_text()
        assert old in text, (path, old)
        (chart / path).write_text(text.replace(old, new))
    return chart


@pytest.mark.parametrize("values", [{}, UPGRADED], ids=["default", "more"])
def test_an_upgrade_needs_nothing_that_kubernetes_refuses(
    next_version: Path, values: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = with_values(values)
    monkeypatch.setattr(render, "CHART", next_version)
    after = with_values(values)
    assert refused(before, after) == []
    kinds = {key.split("/")[0] for key in changed(before, after)}
    assert {"ConfigMap", "Deployment", "Job", "StatefulSet"} <= kinds, "the test shows nothing"


def test_a_refused_upgrade_is_noticed() -> None:
    before = with_values({})
    after = deepcopy(before)
    for obj in after:
        if obj["kind"] == "StatefulSet":
            obj["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"] = {}
        if obj["kind"] == "Job":
            obj["spec"]["template"]["spec"]["containers"][0]["image"] = "other"
    assert {line.rsplit("-", 1)[0] for line in refused(before, after)} == {
        "StatefulSet/prefect-hamilton",
        "Job/prefect-hamilton-bootstrap",
        "Job/prefect-hamilton-secrets",
    }


def test_what_a_release_froze_stays_so() -> None:
    """Fields that nobody can change on a live cluster; a change here needs a migration."""
    snapshot = yaml.safe_load((Path(__file__).parent / "frozen.yaml").read_text())
    now = {
        f"{obj['kind']}/{obj['metadata']['name']}": frozen(obj)
        for obj in with_values(UPGRADED)
        if obj["kind"] != "Job" and frozen(obj)
    }
    assert now == snapshot
