"""Kustomize's objects are the chart's: the base byte for byte, overlays object by object."""

import functools
import json
import re
from pathlib import Path

import pytest
import yaml

from scripts import render
from tests.chart.charts import CHART, Object, check, containers, pod_template, template_text
from tests.kustomize.kustomizations import (
    ALLOWED,
    COMPONENTS,
    KUSTOMIZE,
    OVERLAYS,
    build_text,
    built_text,
    component_values,
    differences,
    merged,
    namespace,
    overlay,
    overlay_values,
    parse,
    with_components,
)

HOOKLESS = ("--no-hooks", "--skip-tests")


def chart(values: Object, namespace: str = "flows") -> list[Object]:
    """Return what the chart renders for the release that the base is named after."""
    text = template_text(values, name=render.RELEASE, namespace=namespace, options=HOOKLESS)
    return parse(text)


def test_the_rendered_files_are_committed() -> None:
    wanted = render.files()
    committed = {path: path.read_text() for path in wanted if path.is_file()}
    assert committed == wanted, "run `make render` and commit what it changes"
    for path, text in wanted.items():
        assert render.NAMESPACE not in text, f"{path.name} names a namespace that no overlay sets"
    assert set(render.rendered()) == set(wanted), "a rendered file is left over: `make render`"


def test_the_base_is_the_chart() -> None:
    assert differences(with_components([]), chart({})) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_the_chart_with_the_values_beside_it(name: str) -> None:
    ours = overlay(name)
    assert differences(ours, chart(overlay_values(name), namespace(ours))) == []


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_is_the_chart_with_its_values(name: str) -> None:
    objects = with_components([*filter(None, [render.AFTER.get(name)]), name])
    assert differences(objects, chart(component_values(name))) == []
    check_all(objects)


# Components that change the same objects. With Valkey, "existing" means one Secret more.
VALKEY_SECRET: Object = {"valkey": {"existingSecret": "prefect-hamilton-valkey"}}
TOGETHER: tuple[tuple[tuple[str, ...], Object], ...] = (
    (("high-availability", "external-database"), {}),
    (("high-availability", "existing-secrets"), VALKEY_SECRET),
    (("external-database", "existing-secrets"), {}),
    (("object-store", "external-database", "flows-repository"), {}),
    (("high-availability", "git-server", "gateway"), {}),
    (("worker-only", "flows-repository"), {}),
    (
        (
            "high-availability",
            "flows-repository",
            "object-store",
            "external-database",
            "existing-secrets",
            "ingress",
            "gateway",
            "monitoring",
        ),
        VALKEY_SECRET,
    ),
)


@pytest.mark.parametrize(("components", "more"), TOGETHER, ids=lambda v: "+".join(v))
@pytest.mark.parametrize("is_reversed", [False, True], ids=["", "reversed"])
def test_components_can_be_combined_in_any_order(
    components: tuple[str, ...], more: Object, is_reversed: bool
) -> None:
    """Only the one that adds pods comes first, as its values.yaml says."""
    theirs = chart(merged(*map(component_values, components), more))
    order = list(components)
    if is_reversed:
        order.sort(key=lambda c: (c == render.ADDS_PODS, components.index(c)), reverse=True)
    found = differences(with_components(order), theirs)
    # A Job's checksum has to change with its content, not to be the chart's.
    assert [line for line in found if "Job/" not in line or "checksum/config" not in line] == []


def test_without_network_policies_none_is_rendered() -> None:
    objects = with_components(["high-availability", "no-network-policy"])
    assert not [o for o in objects if o["kind"] == "NetworkPolicy"]


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


@functools.cache
def check_text(text: str) -> None:
    """Check an object once: most are the same in every overlay."""
    check(json.loads(text))


def check_all(objects: tuple[Object, ...] | list[Object]) -> None:
    """Check schema, Pod Security, and that each variable is defined before another names it."""
    for obj in objects:
        if obj["kind"] == "Namespace":
            continue
        check_text(json.dumps(obj))
        for container in containers(t) if (t := pod_template(obj)) else ():
            defined: set[str] = set()
            for variable in container.get("env", []):
                named = set(re.findall(r"\$\((\w+)\)", variable.get("value", "")))
                assert named <= defined, f"{obj['metadata']['name']}: {variable}"
                defined.add(variable["name"])


@pytest.mark.parametrize("name", OVERLAYS)
def test_rendered_kustomize_files_have_no_helm_labels_or_defaults(name: str) -> None:
    text = built_text(KUSTOMIZE / "overlays" / name)
    for word in ("helm.sh", "managed-by", "local-config", "needsHashSuffix", render.NAMESPACE):
        assert word not in text, word
    for setting, default in yaml.safe_load(render.SETTINGS.read_text())["data"].items():
        assert default not in text, setting
    assert build_text(KUSTOMIZE / "overlays" / name) == text


@pytest.mark.parametrize("allowed", ALLOWED, ids=lambda allowed: allowed.__name__)
def test_every_allowed_difference_exists(allowed: object) -> None:
    """None is allowed that no overlay needs."""
    others = [each for each in ALLOWED if each is not allowed]
    assert any(
        differences(overlay(name), chart(overlay_values(name), namespace(overlay(name))), others)
        for name in OVERLAYS
    )


def test_the_comparison_finds_differences() -> None:
    ours = list(overlay("staging"))
    theirs = chart(overlay_values("staging"), "prefect-staging")
    assert differences(ours[:-1], theirs)
    assert differences(ours, theirs[:-1])
    server = next(o for o in theirs if o["kind"] == "Deployment")
    server["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": "A", "value": "b"})
    (line,) = differences(ours, theirs)[-1:]
    assert "in the chart" in line


def test_the_kind_overlay_is_what_make_kind_installs() -> None:
    installed = yaml.safe_load((CHART / "examples" / "kind" / "values.yaml").read_text())
    assert overlay_values("kind") == installed


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_and_setting_is_documented(name: str) -> None:
    folder = KUSTOMIZE / "components" / name
    source = folder / "values.yaml"
    text = (source if source.is_file() else folder / "kustomization.yaml").read_text()
    assert text.startswith("# ")


def test_every_setting_is_used() -> None:
    used = "".join(p.read_text() for p in KUSTOMIZE.glob("components/*/kustomization.yaml"))
    for setting in yaml.safe_load(render.SETTINGS.read_text())["data"]:
        assert f"fieldPath: data.{setting}\n" in used, setting


def test_an_overlay_has_fewer_than_80_lines() -> None:
    for name in OVERLAYS:
        lines = (KUSTOMIZE / "overlays" / name / "kustomization.yaml").read_text().splitlines()
        assert len(lines) < 80, name


def test_the_check_names_outdated_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stale = KUSTOMIZE / "base" / "deployment-server.yaml"
    wanted = {path: path.read_text() for path in render.rendered()}
    monkeypatch.setattr(render, "files", lambda: wanted | {stale: "changed"})
    with pytest.raises(render.typer.Exit):
        render.main(check=True)
    said = capsys.readouterr()
    assert said.out.splitlines() == ["kustomize/base/deployment-server.yaml"]
    assert "make render" in said.err
    assert stale.read_text() != "changed"
