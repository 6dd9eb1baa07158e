"""Render the chart as `helm template` does, and check every object that comes out."""

import functools
import gzip
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from charts.schema.kubernetes import SCHEMAS

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "charts" / "prefect-hamilton"
VERSIONS = ("1.30", "1.37")

Object = dict[str, Any]


class RenderError(Exception):
    """Helm rejects the values; the text is its error message."""


@dataclass
class Release:
    """What one release renders."""

    text: str
    objects: list[Object] = field(default_factory=list)

    def get(self, kind: str, name: str) -> Object:
        """Return the object of that kind whose name ends so. There must be one."""
        found = [o for o in self.of(kind) if o["metadata"]["name"].endswith(name)]
        assert len(found) == 1, f"{len(found)} of {kind} {name}: {self.names()}"
        return found[0]

    def of(self, kind: str) -> list[Object]:
        """Return all objects of a kind."""
        return [o for o in self.objects if o["kind"] == kind]

    def names(self) -> set[tuple[str, str]]:
        """Return kind and name of every object."""
        return {(o["kind"], o["metadata"]["name"]) for o in self.objects}

    def job(self, component: str) -> Object:
        """Return the Job of a component, whose name ends with a hash."""
        found = [j for j in self.of("Job") if labels(j)[COMPONENT] == component]
        assert len(found) == 1
        return found[0]


COMPONENT = "app.kubernetes.io/component"


def labels(obj: Object) -> dict[str, str]:
    """Return an object's labels."""
    return obj["metadata"].get("labels", {})


def pod_template(obj: Object) -> Object | None:
    """Return the pod template of an object that makes pods, or the pod itself."""
    match obj["kind"]:
        case "Pod":
            return obj
        case "Deployment" | "StatefulSet" | "Job":
            return obj["spec"]["template"]
        case "CronJob":
            return obj["spec"]["jobTemplate"]["spec"]["template"]
        case _:
            return None


def containers(template: Object) -> Iterator[Object]:
    """Yield all containers of a pod template, init containers first."""
    yield from template["spec"].get("initContainers", [])
    yield from template["spec"]["containers"]


def env(container: Object) -> dict[str, Any]:
    """Return a container's environment: values, or the source's mapping."""
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container.get("env", [])}


def template_text(
    values: Object | None = None,
    *,
    name: str = "demo",
    namespace: str = "flows",
    options: tuple[str, ...] = (),
    program: str = "helm",
    chart: Path = CHART,
) -> str:
    """Return what `helm template` prints. Raises RenderError."""
    command = [program, "template", name, str(chart), "--namespace", namespace, *options]
    done = subprocess.run(
        [*command, "--values", "-"],
        # What is a text in JSON is one for every reader of YAML.
        input=json.dumps(values or {}, ensure_ascii=False),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RenderError(done.stderr)
    return done.stdout


def render(
    values: Object | None = None, *, name: str = "demo", namespace: str = "flows"
) -> Release:
    """Render, and check every object against Kubernetes and Pod Security `restricted`."""
    text = template_text(values, name=name, namespace=namespace)
    release = Release(text, [o for o in yaml.load_all(text, Loader=yaml.CSafeLoader) if o])
    keys = {
        (o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in release.objects
    }
    assert len(keys) == len(release.objects), "two objects with one name"
    for obj in release.objects:
        check(obj)
    return release


_checked: set[str] = set()


def check(obj: Object) -> None:
    """Check one object: schema of each version, Pod Security, tidiness.

    An object that has passed is not checked again: most are the same in many releases.
    """
    if (text := repr(obj)) in _checked:
        return
    what = f"{obj['kind']} {obj['metadata'].get('name') or obj['metadata'].get('generateName')}"
    for version in VERSIONS:
        errors = [
            f"{'.'.join(map(str, e.path))}: {e.message[:300]}"
            for e in validator(version, f"{obj['apiVersion']}/{obj['kind']}").iter_errors(obj)
        ]
        assert not errors, f"{what} is not valid in Kubernetes {version}: {errors}"
    if (template := pod_template(obj)) is not None:
        violations = list(pod_security_violations(template["spec"]))
        assert not violations, f"{what} is not restricted: {violations}"
        for container in containers(template):
            names = [e["name"] for e in container.get("env", [])]
            assert len(names) == len(set(names)), f"{what}: a variable appears twice"
    empty = list(empty_parts(obj))
    assert not empty, f"{what} has empty parts: {empty}"
    _checked.add(text)


@functools.cache
def validator(version: str, kind: str) -> Any:
    """Return the validator of a kind, such as `apps/v1/Deployment`."""
    schemas = read_schemas(version)
    if kind not in schemas:
        schemas = read_schemas("custom-resources")
    schema = {**schemas[kind], "definitions": schemas["definitions"]}
    return jsonschema.Draft7Validator(schema)


@functools.cache
def read_schemas(name: str) -> Object:
    """Read the schemas of a Kubernetes version."""
    return dict(json.loads(gzip.decompress((SCHEMAS / f"{name}.json.gz").read_bytes())))


SECCOMP = ("RuntimeDefault", "Localhost")
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def pod_security_violations(spec: Object) -> Iterator[str]:
    """Yield what Pod Security `restricted` forbids (Kubernetes: Pod Security Standards)."""
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield key
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            yield f"volume {volume['name']}: {kinds}"
    pod = spec.get("securityContext", {})
    # Also forbidden where each container sets something else.
    if pod.get("runAsUser") == 0:
        yield "runAsUser 0"
    if pod.get("runAsNonRoot") is False:
        yield "runAsNonRoot"
    if pod.get("seccompProfile", {}).get("type", "RuntimeDefault") not in SECCOMP:
        yield "seccompProfile"
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        name, own = container["name"], container.get("securityContext", {})
        if own.get("privileged"):
            yield f"{name}: privileged"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation"
        capabilities = own.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"]:
            yield f"{name}: capabilities are not dropped"
        if not set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"}:
            yield f"{name}: capabilities are added"
        if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
            yield f"{name}: runAsNonRoot"
        if own.get("runAsUser") == 0:
            yield f"{name}: runAsUser 0"
        seccomp = own.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
        if seccomp not in SECCOMP:
            yield f"{name}: seccompProfile"
        if any(port.get("hostPort") for port in container.get("ports", [])):
            yield f"{name}: hostPort"


def empty_parts(node: Any, path: str = "") -> Iterator[str]:
    """Yield where a rendered object has an empty or null part that says nothing."""
    # These mean something: a volume of that kind, and "everything" in a policy.
    if path.endswith((".emptyDir", ".egress[0]", ".ingress[0]", ".podSelector")):
        return
    if node is None or node == {} or node == []:
        yield path
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from empty_parts(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from empty_parts(value, f"{path}[{index}]")
