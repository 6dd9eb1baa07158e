"""Kustomize's objects are the chart's: bases text by text, builds object by object."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from scripts import render
from tests.chart.charts import CHART, Object, check, containers, env, pod_template
from tests.chart.conftest import PROFILES, profile_values
from tests.kustomize.kustomizations import (
    ALLOWED,
    KUSTOMIZE,
    NAMESPACE,
    OVERLAYS,
    ROOT,
    build_text,
    built_text,
    chart,
    differences,
    joined,
    kustomization,
    namespace,
    overlay,
    overlay_values,
    parse,
    with_values,
)

# --- the bases of the overlays


def test_the_committed_bases_are_up_to_date() -> None:
    bases = list(render.bases())
    for base in bases:
        assert render.update(base, check=True) == [], "run `make render` and commit the result"
    assert [base.folder for base in bases] == sorted((KUSTOMIZE / "base").iterdir())
    assert [base.folder.name for base in bases] == list(OVERLAYS)


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_object_has_a_file_that_is_named_after_it(name: str) -> None:
    for path in (KUSTOMIZE / "base" / name).glob("*-*.yaml"):
        if path.name == "image-fields.yaml":
            continue
        (obj,) = parse(path.read_text())
        short = obj["metadata"]["name"].removeprefix("prefect-hamilton").strip("-")
        assert path.stem == f"{obj['kind'].lower()}-{short or 'all'}"


def test_the_kind_overlay_is_what_make_kind_installs() -> None:
    assert overlay_values("kind") == profile_values("kind")


# --- overlays


def kustomization_values(name: str) -> Object:
    """Return the values that say what an overlay's kustomization.yaml sets: images and commit."""
    content = kustomization(name)
    values: Object = {}
    if images := {i["name"].rpartition("/")[2]: i for i in content.get("images", [])}:
        keys = {"newTag": "tag", "digest": "digest"}
        prefect, flows, hamilton_ui = (
            {"image": {keys[key]: text for key, text in images[image].items() if key in keys}}
            for image in ("prefect", "flows", "hamilton-ui")
        )
        values = {"server": prefect, "worker": prefect, "flows": flows, "hamiltonUi": hamilton_ui}
    for each in content.get("patches", []):
        (variable,) = bootstrap_of(yaml.safe_load(each["patch"]))["env"]
        assert variable["name"] == "FLOWS_REF"
        values = joined(values, {"flows": {"ref": variable["value"]}})
    return values


def chart_of(name: str) -> list[Object]:
    """Return what the chart renders with an overlay's values, images and commit."""
    values = joined(overlay_values(name), kustomization_values(name))
    return chart(values, namespace(overlay(name)))


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_the_chart_with_its_values_images_and_commit(name: str) -> None:
    assert differences(overlay(name), chart_of(name)) == []


@pytest.mark.parametrize("name", [name for name in OVERLAYS if kustomization(name).get("patches")])
def test_the_schedule_registers_the_commit_and_the_images_of_the_overlay(name: str) -> None:
    values = joined(overlay_values(name), {"bootstrap": {"schedule": "*/10 * * * *"}})
    content = kustomization(name)
    changes = {key: content[key] for key in ("images", "patches", "replacements")}
    objects = with_values(values, **changes)
    name = "prefect-hamilton-bootstrap"
    found = [obj for obj in objects if obj["metadata"]["name"].startswith(name)]
    once, scheduled = (
        bootstrap_of(next(obj for obj in found if obj["kind"] == kind))
        for kind in ("Job", "CronJob")
    )
    assert scheduled["image"] == once["image"]
    assert env(scheduled) == env(once)


def bootstrap_of(obj: Object) -> Object:
    """Return the container of the bootstrap."""
    template = pod_template(obj)
    assert template
    return next(each for each in containers(template) if each["name"] == "bootstrap")


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_valid_and_restricted(name: str) -> None:
    objects = overlay(name)
    check_all(objects)
    namespaces = [o for o in objects if o["kind"] == "Namespace"]
    assert list(objects[: len(namespaces)]) == namespaces, "the namespace comes first"
    # Production's comes with its Secrets.
    assert bool(namespaces) == (name != "production")
    for each in namespaces:
        assert each["metadata"]["name"] == namespace(objects)
        assert each["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}


def check_all(objects: tuple[Object, ...] | list[Object]) -> None:
    """Check schema and Pod Security, and each variable: it is defined before another names it.

    Kubernetes drops an empty value, so that each `kubectl apply` would write the object again.
    """
    for obj in objects:
        if obj["kind"] == "Namespace":
            continue
        check(obj)
        for container in containers(t) if (t := pod_template(obj)) else ():
            # The kubelet defines it in every pod.
            defined = {"KUBERNETES_SERVICE_HOST"}
            for variable in container.get("env", []):
                named = set(re.findall(r"\$\((\w+)\)", variable.get("value", "")))
                assert named <= defined, f"{obj['metadata']['name']}: {variable}"
                defined.add(variable["name"])
                assert variable.get("value") != "", f"{obj['metadata']['name']}: {variable}"


@pytest.mark.parametrize("name", OVERLAYS)
def test_nothing_of_helm_is_left_and_two_builds_are_equal(name: str) -> None:
    text = built_text(KUSTOMIZE / "overlays" / name)
    for word in ("helm.sh", "managed-by", "needsHashSuffix"):
        assert word not in text, word
    assert build_text(KUSTOMIZE / "overlays" / name) == text


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_handwritten_files_of_an_overlay_are_short(name: str) -> None:
    for path in (KUSTOMIZE / "overlays" / name).iterdir():
        assert len(path.read_text().splitlines()) < 60, path


@pytest.mark.parametrize("allowed", ALLOWED, ids=lambda allowed: allowed.__name__)
def test_every_allowed_difference_is_there(allowed: object) -> None:
    """None is allowed that no overlay needs."""
    others = [each for each in ALLOWED if each is not allowed]
    assert any(differences(overlay(name), chart_of(name), others) for name in OVERLAYS)


def test_the_comparison_sees_what_differs() -> None:
    built, expected = list(overlay("staging")), chart_of("staging")
    assert differences(built[:-1], expected)
    assert differences(built, expected[:-1])
    server = next(o for o in expected if o["kind"] == "Deployment")
    server["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": "A", "value": "b"})
    (line,) = differences(built, expected)[-1:]
    assert "in the chart" in line


# --- a base from a team's own values


@pytest.mark.parametrize("example", ["default", *PROFILES])
def test_a_base_from_any_values_is_the_chart_with_them(example: str) -> None:
    values = {} if example == "default" else profile_values(example)
    objects = with_values(values)
    assert differences(objects, chart(values)) == []
    check_all(objects)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.render", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_command_renders_a_base_from_several_values_files(tmp_path: Path) -> None:
    more = tmp_path / "more.yaml"
    more.write_text("worker: {limit: 7}\nprometheusRule: {enabled: true}\n")
    files = (CHART / "examples" / "high-availability" / "values.yaml", more)
    options = [f"--values={path}" for path in files] + [f"--output={tmp_path / 'base'}"]
    done = command(*options, f"--namespace={NAMESPACE}")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "base" / "deployment-server.yaml") in done.stdout.splitlines()
    values = joined(*(yaml.safe_load(path.read_text()) for path in files))
    assert differences(parse(build_text(tmp_path / "base")), chart(values)) == []

    assert command(*options, f"--namespace={NAMESPACE}", "--check").returncode == 0
    more.write_text("prometheusRule: {enabled: true}\n")
    done = command(*options, f"--namespace={NAMESPACE}", "--check")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [str(tmp_path / "base/deployment-worker-kubernetes.yaml")]
    assert "make render" in done.stderr
    more.write_text("worker: {limit: 7}\n")
    done = command(*options, f"--namespace={NAMESPACE}")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "base" / "prometheusrule-all.yaml").exists()


def test_make_render_passes_values_and_output_on() -> None:
    arguments = ["VALUES=my values.yaml", "OUTPUT=my-base", "OPTIONS=--namespace flows"]
    done = subprocess.run(
        ["make", "--dry-run", "render", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "render --values 'my values.yaml' --output 'my-base' --namespace flows" in done.stdout


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("precious: true\n")
    (values := tmp_path / "values").touch()
    done = command(f"--values={values}", f"--output={tmp_path}")
    assert done.returncode == 1
    assert "mine.yaml" in done.stderr and "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"mine.yaml", "values"}


def test_values_that_the_chart_refuses_are_named(tmp_path: Path) -> None:
    (values := tmp_path / "values.yaml").write_text("server: {replica: 2}\n")
    done = command(f"--values={values}", f"--output={tmp_path / 'base'}")
    assert done.returncode == 1
    assert "replica" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "base").exists()


def test_values_need_an_output(tmp_path: Path) -> None:
    done = command(f"--values={tmp_path}")
    assert done.returncode == 2
    assert "--output" in done.stderr


def test_two_objects_with_one_file_are_refused(tmp_path: Path) -> None:
    objects = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
        for name in ("prefect-hamilton-extra", "extra")
    ]
    (values := tmp_path / "values.yaml").write_text(json.dumps({"extraObjects": objects}))
    done = command(f"--values={values}", f"--output={tmp_path / 'base'}")
    assert done.returncode == 1
    assert "configmap-extra.yaml" in done.stderr


# --- what docs/gitops.md and docs/drift.md show


def blocks(page: str) -> list[Any]:
    """Return the YAML blocks of a page of the docs."""
    tokens = MarkdownIt().parse((ROOT / "docs" / page).read_text())
    return [yaml.safe_load(t.content) for t in tokens if t.type == "fence" and t.info == "yaml"]


def test_the_values_of_the_docs_can_be_rendered_together() -> None:
    (values,) = [block for block in blocks("gitops.md") if "patches" not in block]
    objects = with_values(values)
    check_all(objects)
    kinds = {obj["kind"] for obj in objects}
    assert {"HTTPRoute", "PrometheusRule"} <= kinds
    assert not {"NetworkPolicy", "Ingress"} & kinds
    assert not [obj for obj in objects if obj["metadata"]["name"].endswith("-postgres")]


def test_the_schedule_of_the_docs_adds_nothing_but_the_job_of_a_clock() -> None:
    (values,) = [block for block in blocks("drift.md") if "patches" not in block]
    added = {(o["kind"], o["metadata"]["name"]) for o in with_values(values)}
    added -= {(o["kind"], o["metadata"]["name"]) for o in with_values({})}
    assert added == {("CronJob", "prefect-hamilton-bootstrap")}


def test_each_sync_of_argo_cd_replaces_the_job_that_the_docs_patch_and_no_other_object() -> None:
    (block,) = [block for block in blocks("drift.md") if "patches" in block]
    option = "argocd.argoproj.io/sync-options"
    objects = with_values(overlay_values("staging"), patches=block["patches"])
    replaced = [
        obj["metadata"]["labels"]["app.kubernetes.io/component"]
        for obj in objects
        if "Force=true" in obj["metadata"].get("annotations", {}).get(option, "")
    ]
    assert replaced == ["bootstrap"]


DOCS_PATCHES = [
    patch
    for page in ("gitops.md", "drift.md")
    for block in blocks(page)
    for patch in block.get("patches", [])
]


@pytest.mark.parametrize("patch", DOCS_PATCHES, ids=lambda patch: patch["target"]["kind"])
def test_a_patch_of_the_docs_changes_its_target_and_nothing_else(patch: Object) -> None:
    values = overlay_values("staging")
    target = {"name": "", **patch["target"]}
    found = differences(with_values(values, patches=[patch]), chart(values))
    assert found
    for line in found:
        assert f"{target['kind']}/{NAMESPACE}/{target['name']}" in line
    check_all(with_values(values, patches=[patch]))
