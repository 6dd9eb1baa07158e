"""
Extract the JSON schemas of the objects that the chart renders, small enough to keep.

Usage: extract.py OUTPUT SWAGGER-OR-CRD...
OUTPUT: a .json.gz file: `apiVersion/kind` to schema, and `definitions`. The inputs are
api/openapi-spec/swagger.json of a Kubernetes release, and CustomResourceDefinitions as YAML.
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

KINDS = {
    "v1": ["ConfigMap", "PersistentVolumeClaim", "Pod", "Secret", "Service", "ServiceAccount"],
    "apps/v1": ["Deployment", "StatefulSet"],
    "autoscaling/v2": ["HorizontalPodAutoscaler"],
    "batch/v1": ["CronJob", "Job"],
    "networking.k8s.io/v1": ["Ingress", "NetworkPolicy"],
    "policy/v1": ["PodDisruptionBudget"],
    "rbac.authorization.k8s.io/v1": ["Role", "RoleBinding"],
}
# Types that Kubernetes reads more generously than its specification says.
GENEROUS = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"type": ["string", "integer"]},
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": ["string", "number"]},
}


def main(output: Path, sources: list[Path]) -> None:
    """Write the schemas."""
    schemas: dict[str, Any] = {"definitions": {}}
    for source in sources:
        if source.suffix == ".json":
            from_swagger(schemas, json.loads(source.read_text()))
        else:
            from_crd(schemas, yaml.safe_load(source.read_text()))
    text = json.dumps(schemas, sort_keys=True, separators=(",", ":"))
    output.write_bytes(gzip.compress(text.encode(), mtime=0))


def from_swagger(schemas: dict[str, Any], swagger: dict[str, Any]) -> None:
    """Take the kinds and every definition that they lead to."""
    definitions = swagger["definitions"]
    pending = []
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", []):
            version = f"{kind['group']}/{kind['version']}".removeprefix("/")
            if kind["kind"] in KINDS.get(version, []):
                schemas[f"{version}/{kind['kind']}"] = {"$ref": f"#/definitions/{name}"}
                pending.append(name)
    while pending:
        name = pending.pop()
        if name in schemas["definitions"]:
            continue
        schema = GENEROUS.get(name) or strict(definitions[name])
        schemas["definitions"][name] = schema
        pending += references(schema)


def from_crd(schemas: dict[str, Any], crd: dict[str, Any]) -> None:
    """Take the stored version."""
    spec = crd["spec"]
    version = next(version for version in spec["versions"] if version["storage"])
    kind = f"{spec['group']}/{version['name']}/{spec['names']['kind']}"
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    schemas[kind] = schema


def strict(schema: Any) -> Any:
    """Without prose and extensions; a field that is not known is an error."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return GENEROUS["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("description", "format", "default") or key.startswith("x-"):
            continue
        if key == "properties":
            kept[key] = {name: strict(child) for name, child in value.items()}
        else:
            kept[key] = strict(value)
    if "properties" in kept:
        kept.setdefault("additionalProperties", False)
    return kept


def references(schema: Any) -> list[str]:
    """Names of the definitions that a schema refers to."""
    if isinstance(schema, list):
        return [name for item in schema for name in references(item)]
    if not isinstance(schema, dict):
        return []
    own = [schema["$ref"].rsplit("/", 1)[1]] if isinstance(schema.get("$ref"), str) else []
    return own + [name for value in schema.values() for name in references(value)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(source) for source in sys.argv[2:]])
