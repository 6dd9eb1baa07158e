"""Parts of Kubernetes objects in values, described by the schemas of Kubernetes itself."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import WithJsonSchema

from charts.schema.text import in_words

SCHEMAS = Path(__file__).parent / "kubernetes-api"
VERSION = "1.37"
"""The newest version in the folder, which has every field of the older ones."""
MARK = "x-kubernetes"
"""Placeholder in a schema for a reference to a definition; `resolve` replaces it."""
_CORE = "io.k8s.api.core.v1"
_NETWORK = "io.k8s.api.networking.v1"
_MERGED = {f"{_CORE}.PodSecurityContext", f"{_CORE}.SecurityContext"}
"""Merged into defaults of the chart, where null removes a field."""
_CUSTOM = {
    "ParentReference": (
        "gateway.networking.k8s.io/v1/HTTPRoute",
        ("spec", "parentRefs", "items"),
    ),
    "Rule": (
        "monitoring.coreos.com/v1/PrometheusRule",
        ("spec", "groups", "items", "rules", "items"),
    ),
}
"""Definitions inside the schemas of custom resources: kind and path."""
_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*$"
_WORDS = {
    rf"^{_LABEL}$": "a name of lowercase letters, digits and hyphens, such as my-name",
    rf"^{_SUBDOMAIN}": "a name of lowercase letters, digits, hyphens and dots, such as my-name",
    rf"^$|^{_SUBDOMAIN}": "the name of an API group, such as gateway.networking.k8s.io",
    "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$": "the kind of an object, such as Gateway",
    "^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?"
    "(([0-9]+)ms)?)$": "a duration with units, such as 30s or 1h30m",
}
"""The regular expressions in these definitions, in words."""


def _part(name: str) -> WithJsonSchema:
    return WithJsonSchema({MARK: name})


Affinity = Annotated[dict[str, Any], _part(f"{_CORE}.Affinity")]
ConfigMapKeySelector = Annotated[dict[str, Any], _part(f"{_CORE}.ConfigMapKeySelector")]
Container = Annotated[dict[str, Any], _part(f"{_CORE}.Container")]
EnvFromSource = Annotated[dict[str, Any], _part(f"{_CORE}.EnvFromSource")]
FieldSelector = Annotated[dict[str, Any], _part(f"{_CORE}.ObjectFieldSelector")]
HostAlias = Annotated[dict[str, Any], _part(f"{_CORE}.HostAlias")]
PodDnsConfig = Annotated[dict[str, Any], _part(f"{_CORE}.PodDNSConfig")]
PodSecurityContext = Annotated[dict[str, Any], _part(f"{_CORE}.PodSecurityContext")]
PodTemplatePatch = Annotated[dict[str, Any], _part(f"{_CORE}.PodTemplateSpec")]
ResourceFieldSelector = Annotated[dict[str, Any], _part(f"{_CORE}.ResourceFieldSelector")]
SecretKeySelector = Annotated[dict[str, Any], _part(f"{_CORE}.SecretKeySelector")]
SecurityContext = Annotated[dict[str, Any], _part(f"{_CORE}.SecurityContext")]
Toleration = Annotated[dict[str, Any], _part(f"{_CORE}.Toleration")]
TopologySpreadConstraint = Annotated[dict[str, Any], _part(f"{_CORE}.TopologySpreadConstraint")]
Volume = Annotated[dict[str, Any], _part(f"{_CORE}.Volume")]
VolumeMount = Annotated[dict[str, Any], _part(f"{_CORE}.VolumeMount")]
NetworkPolicyEgressRule = Annotated[dict[str, Any], _part(f"{_NETWORK}.NetworkPolicyEgressRule")]
NetworkPolicyPeer = Annotated[dict[str, Any], _part(f"{_NETWORK}.NetworkPolicyPeer")]
ParentReference = Annotated[dict[str, Any], _part("ParentReference")]
PrometheusRule = Annotated[dict[str, Any], _part("Rule")]


def resolve(schema: dict[str, Any]) -> None:
    """Replace each mark in `schema` by a reference, and add what it refers to to its $defs."""
    pending = _replace(schema)
    while pending:
        name = min(pending)
        pending.remove(name)
        if name not in schema["$defs"]:
            schema["$defs"][name] = definition = _definition(name)
            _say(definition)
            pending |= _replace(definition)


def _say(node: Any) -> None:
    """Let every regular expression in a definition be reported in words."""
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, dict | list):
            _say(child)
    if isinstance(node, dict) and isinstance(node.get("pattern"), str):
        pattern = node.pop("pattern")
        node.update(in_words(pattern, _WORDS[pattern]))


def _replace(node: Any) -> set[str]:
    """Make references of marks and of Kubernetes' own references; return their names."""
    if isinstance(node, list):
        return {name for child in node for name in _replace(child)}
    if not isinstance(node, dict):
        return set()
    found = {name for child in node.values() for name in _replace(child)}
    name = node.pop(MARK, None)
    if name is None and str(node.get("$ref", "")).startswith("#/definitions/"):
        name = node["$ref"].removeprefix("#/definitions/")
    if name is None:
        return found
    node["$ref"] = f"#/$defs/{name}"
    return {*found, name}


def _definition(name: str) -> dict[str, Any]:
    if name in _CUSTOM:
        kind, path = _CUSTOM[name]
        custom: dict[str, Any] = _read("custom-resources")[kind]
        for key in path:
            custom = custom[key] if key == "items" else custom["properties"][key]
        return custom
    definition: dict[str, Any] = _read(VERSION)["definitions"][name]
    if name in _MERGED:
        for key, part in definition["properties"].items():
            definition["properties"][key] = {"anyOf": [part, {"type": "null"}]}
    if name == f"{_CORE}.PodSpec":
        # It is merged into a pod that has containers.
        del definition["required"]
    return definition


def _read(name: str) -> dict[str, Any]:
    """Return a fresh copy of a file of schemas."""
    return dict(json.loads(_text(name)))


@functools.cache
def _text(name: str) -> bytes:
    return gzip.decompress((SCHEMAS / f"{name}.json.gz").read_bytes())
