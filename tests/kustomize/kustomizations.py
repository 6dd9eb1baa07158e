"""Build kustomizations, and compare what comes out with what the chart renders."""

import functools
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import render
from tests.chart.charts import Object, template_text

ROOT = render.ROOT
KUSTOMIZE = render.KUSTOMIZE
OVERLAYS = tuple(sorted(p.parent.name for p in KUSTOMIZE.glob("overlays/*/kustomization.yaml")))
NAMESPACE = "flows"


def need_tools() -> None:
    """Skip where helm or kubectl is missing."""
    for tool in ("helm", "kubectl"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not on PATH")


def build_text(folder: Path) -> str:
    """Return what `kubectl kustomize` prints."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def parse(text: str) -> list[Object]:
    """Return the objects of a YAML text."""
    return [o for o in yaml.load_all(text, Loader=yaml.CSafeLoader) if o]


@functools.cache
def built(folder: Path) -> tuple[Object, ...]:
    """Return the objects of a kustomization; nobody changes them."""
    return tuple(parse(built_text(folder)))


built_text = functools.cache(build_text)


def overlay(name: str) -> tuple[Object, ...]:
    """Return the objects of one of the overlays."""
    return built(KUSTOMIZE / "overlays" / name)


def kustomization(name: str) -> Object:
    """Return the kustomization.yaml of an overlay."""
    path = KUSTOMIZE / "overlays" / name / "kustomization.yaml"
    return dict(yaml.safe_load(path.read_text()))


def overlay_values(name: str) -> Object:
    """Return the values of an overlay's base."""
    return dict(yaml.safe_load((KUSTOMIZE / "overlays" / name / "values.yaml").read_text()))


def namespace(objects: Sequence[Object]) -> str:
    """Return the one namespace that all objects are in."""
    names = {o["metadata"]["namespace"] for o in objects if o["kind"] != "Namespace"}
    assert len(names) == 1, names
    return str(names.pop())


def with_values(values: Object, **content: Any) -> list[Object]:
    """Build an overlay of a base that is rendered from values; `content` is its kustomization."""
    return parse(_with_values(json.dumps(values), json.dumps(content), render.CHART))


@functools.cache
def _with_values(values: str, content: str, chart: Path) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "values.yaml").write_text(values)
        base = render.Base(folder / "base", [folder / "values.yaml"], NAMESPACE)
        render.update(base, check=False)
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": ["base"],
            **json.loads(content),
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return build_text(folder)


def chart(values: Object, namespace: str = NAMESPACE) -> list[Object]:
    """Return what the chart renders for the release that bases are named after."""
    objects = parse(_chart(json.dumps(values), namespace))
    for obj in objects:
        # Helm installs an object that names no namespace into that of the release.
        obj["metadata"].setdefault("namespace", namespace)
    return objects


@functools.cache
def _chart(values: str, namespace: str) -> str:
    options = ("--no-hooks", "--skip-tests")
    return template_text(
        json.loads(values), name=render.RELEASE, namespace=namespace, options=options
    )


def joined(*several: Object) -> Object:
    """Return values as helm joins several files."""
    result: Object = {}
    for values in several:
        for key, value in values.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = joined(result[key], value) if both else value
    return result


# --- what may differ, and why

Allowed = Callable[[Object], Object | None]


def only_overlays_make_the_namespace(obj: Object) -> Object | None:
    """Helm has --create-namespace; with GitOps the namespace and its labels are in Git."""
    return None if obj["kind"] == "Namespace" else obj


def helms_own_labels(obj: Object) -> Object:
    """Helm does not manage these objects, and no chart was installed."""
    labels = obj["metadata"].get("labels", {})
    labels.pop("app.kubernetes.io/managed-by", None)
    labels.pop("helm.sh/chart", None)
    return obj


def each_engines_annotation_that_keeps_data(obj: Object) -> Object:
    """Helm, Argo CD and Flux each have an annotation that says: never delete this."""
    annotations = obj["metadata"].get("annotations", {})
    engines = [
        {"helm.sh/resource-policy": "keep"},
        {
            "argocd.argoproj.io/sync-options": "Delete=false,Prune=false",
            "kustomize.toolkit.fluxcd.io/prune": "disabled",
        },
    ]
    for engine in engines:
        if engine.items() <= annotations.items():
            for key in engine:
                del annotations[key]
            annotations["kept"] = "yes"
    return obj


def the_hash_in_a_jobs_name(obj: Object) -> Object:
    """The chart hashes a Job's spec, Kustomize the Job after all patches."""
    if obj["kind"] == "Job":
        name = obj["metadata"]["name"]
        obj["metadata"]["name"], number = re.subn(r"-([0-9a-f]{8}|[0-9a-z]{10})$", "", name)
        assert number == 1, name
    return obj


def the_order_of_a_jobs_variables(obj: Object) -> Object:
    """Kustomize puts a variable that an overlay patches first."""
    if obj["kind"] == "Job":
        for container in obj["spec"]["template"]["spec"]["containers"]:
            container.get("env", []).sort(key=lambda variable: variable["name"])
    return obj


ALLOWED: tuple[Allowed, ...] = (
    only_overlays_make_the_namespace,
    helms_own_labels,
    each_engines_annotation_that_keeps_data,
    the_hash_in_a_jobs_name,
    the_order_of_a_jobs_variables,
)


def differences(
    built: Sequence[Object], charts: Sequence[Object], allowed: Sequence[Allowed] = ALLOWED
) -> list[str]:
    """Return where two sets of objects differ beyond what is allowed, one line each."""
    one, other = (comparable(objects, allowed) for objects in (built, charts))
    lines = [f"only Kustomize has {key}" for key in sorted(one.keys() - other.keys())]
    lines += [f"only the chart has {key}" for key in sorted(other.keys() - one.keys())]
    for key in sorted(one.keys() & other.keys()):
        mine, theirs = dict(paths(one[key])), dict(paths(other[key]))
        lines += [
            f"{key} {path}: {mine.get(path)!r} here, {theirs.get(path)!r} in the chart"
            for path in sorted(mine.keys() | theirs.keys())
            if mine.get(path) != theirs.get(path)
        ]
    return lines


def comparable(objects: Sequence[Object], allowed: Sequence[Allowed]) -> dict[str, Object]:
    """Return the objects by kind, namespace and name, without what may differ."""
    result = {}
    for original in objects:
        obj: Object | None = deepcopy(original)
        for allow in allowed:
            obj = allow(obj) if obj is not None else None
        if obj is not None:
            meta = obj["metadata"]
            result[f"{obj['kind']}/{meta.get('namespace')}/{meta['name']}"] = obj
    return result


def paths(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of an object with where it is."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from paths(value, f"{path}.{key}")
    elif isinstance(node, list) and node:
        for index, item in enumerate(node):
            yield from paths(item, f"{path}[{index}]")
    else:
        yield path, node
