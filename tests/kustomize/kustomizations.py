"""Build kustomizations, and compare what comes out with what the chart renders."""

import functools
import json
import os
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
from tests.chart.charts import Object

ROOT = render.ROOT
KUSTOMIZE = render.KUSTOMIZE
OVERLAYS = tuple(sorted(p.parent.name for p in KUSTOMIZE.glob("overlays/*/kustomization.yaml")))
COMPONENTS = tuple(sorted(p.parent.name for p in KUSTOMIZE.glob("components/*/kustomization.yaml")))


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


def overlay_values(name: str) -> Object:
    """Return the values that make the chart render the same."""
    return dict(yaml.safe_load((KUSTOMIZE / "overlays" / name / "values.yaml").read_text()))


def namespace(objects: Sequence[Object]) -> str:
    """Return the one namespace that all objects are in."""
    names = {o["metadata"]["namespace"] for o in objects if o["kind"] != "Namespace"}
    assert len(names) == 1, names
    return str(names.pop())


def with_components(
    components: Sequence[str], base: Path = KUSTOMIZE / "base", **content: Any
) -> list[Object]:
    """Build an overlay of the base with these components."""
    return parse(_with_components(tuple(components), base, json.dumps(content)))


@functools.cache
def _with_components(components: tuple[str, ...], base: Path, content: str) -> str:
    with tempfile.TemporaryDirectory() as folder:

        def path(target: Path) -> str:
            return os.path.relpath(target, Path(folder).resolve())

        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "flows",
            "resources": [path(base)],
            "components": [path(base.parent / "components" / name) for name in components],
            **json.loads(content),
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return build_text(Path(folder))


def component_values(name: str) -> Object:
    """Return the values of a component's switch."""
    if name == "no-network-policy":
        return {"networkPolicy": {"enabled": False}}
    return render.switch(name)


def merged(*values: Object) -> Object:
    """Return the values as helm joins several files."""
    return functools.reduce(render.joined, values, {})


# --- what may differ, and why

Allowed = Callable[[Object], Object | None]


def only_overlays_make_the_namespace(obj: Object) -> Object | None:
    """Helm has --create-namespace; whoever syncs wants the namespace with its labels in Git."""
    return None if obj["kind"] == "Namespace" else obj


def helms_own_labels(obj: Object) -> Object:
    """Nobody but Helm manages objects with Helm, and no chart was installed."""
    labels = obj["metadata"].get("labels", {})
    labels.pop("app.kubernetes.io/managed-by", None)
    labels.pop("helm.sh/chart", None)
    return obj


def each_engines_word_for_keeping_data(obj: Object) -> Object:
    """Helm, Argo CD and Flux each have an annotation that says: never delete this."""
    annotations = obj["metadata"].get("annotations", {})
    words = [
        {"helm.sh/resource-policy": "keep"},
        {
            "argocd.argoproj.io/sync-options": "Delete=false,Prune=false",
            "kustomize.toolkit.fluxcd.io/prune": "disabled",
        },
    ]
    for word in words:
        if word.items() <= annotations.items():
            for key in word:
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


def the_order_of_what_has_names(obj: Object) -> Object:
    """Kustomize merges variables, volumes and mounts by name and puts new ones first."""

    def ordered(node: Any, key: str = "") -> Any:
        if isinstance(node, dict):
            return {k: ordered(v, k) for k, v in node.items()}
        if isinstance(node, list):
            items = [ordered(item) for item in node]
            if (by := render.MERGE_KEYS.get(key)) and all(by in item for item in items):
                items.sort(key=lambda item: item[by])
            return items
        return node

    result: Object = ordered(obj)
    return result


ALLOWED: tuple[Allowed, ...] = (
    only_overlays_make_the_namespace,
    helms_own_labels,
    each_engines_word_for_keeping_data,
    the_hash_in_a_jobs_name,
    the_order_of_what_has_names,
)


def differences(
    ours: Sequence[Object], charts: Sequence[Object], allowed: Sequence[Allowed] = ALLOWED
) -> list[str]:
    """Return where two sets of objects differ beyond what is allowed, one line each."""
    one, other = (comparable(objects, allowed) for objects in (ours, charts))
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
    """Return the objects by kind and name, without what may differ."""
    result = {}
    for original in objects:
        obj: Object | None = deepcopy(original)
        for allow in allowed:
            obj = allow(obj) if obj is not None else None
        if obj is not None:
            result[f"{obj['kind']}/{obj['metadata']['name']}"] = obj
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
