"""The Job of a flow run: base job template, what its deployment adds, and `flows.podTemplate`."""

import copy
import os
from collections.abc import Mapping
from typing import Any

from kubernetes_asyncio.client import V1Secret
from prefect.settings import Settings, get_current_settings
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration
from pydantic import Field, PrivateAttr

from prefect_hamilton.worker import pod_security

Object = dict[str, Any]

_MERGED = {"containers": "name", "initContainers": "name"}
"""Lists whose items are merged by this key."""

_REPLACED = {
    "env": "name",
    "hostAliases": "ip",
    "imagePullSecrets": "name",
    "volumeDevices": "devicePath",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
"""Lists whose items replace those with the same key."""

_SELECTED = (
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "prefect-hamilton/work-pool",
)
"""Labels of the pod by which NetworkPolicies select it: a deployment cannot change them."""

_CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


class JobConfiguration(KubernetesWorkerJobConfiguration):  # type: ignore[misc]
    """Prefect's, with what a deployment adds to the pod by its job variables.

    The fields are those of the base job template of the chart. They add to its lists, which a
    template alone cannot do.
    """

    env_from_secrets: list[str] = Field(default_factory=list)
    env_from_config_maps: list[str] = Field(default_factory=list)
    secret_env: dict[str, str] = Field(default_factory=dict)
    """Names of variables, and `secret/key`."""
    secret_files: dict[str, str] = Field(default_factory=dict)
    """Paths of folders, and names of Secrets."""
    config_map_files: dict[str, str] = Field(default_factory=dict)
    volumes: list[Object] = Field(default_factory=list)
    volume_mounts: list[Object] = Field(default_factory=list)
    extra_resources: dict[str, str | int] = Field(default_factory=dict)
    init_containers: list[Object] = Field(default_factory=list)
    sidecars: list[Object] = Field(default_factory=list)
    pod_template: Object = Field(default_factory=dict)
    """Merged over the pod at the end: the value `flows.podTemplate` of the chart."""
    _env_secret: V1Secret | None = PrivateAttr(default=None)
    """The Secret with the environment, which is created after the Job."""

    @classmethod
    def _base_environment(cls) -> dict[str, str]:
        """Return what Prefect adds to each flow run's environment: its settings in this process."""
        return _environment(get_current_settings())

    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:
        """Fill the manifest in as Prefect does, and merge the additions into it."""
        own = self.job_manifest["spec"]["template"].get("metadata", {}).get("labels") or {}
        selected = {name: own[name] for name in _SELECTED if name in own}
        super().prepare_for_flow_run(*args, **kwargs)
        job = self.job_manifest["spec"]
        job["template"]["metadata"]["labels"] |= selected
        template = merged(job["template"], self._additions(job["template"]["spec"]))
        job["template"] = merged(template, self.pod_template)
        if pod_security.is_restricted(os.environ):
            _confine(job["template"]["spec"])

    def _additions(self, pod: Object) -> Object:
        """Return the part of a pod template that the job variables describe."""
        container = pod["containers"][0]
        mounted = [*_mounted(self.secret_files, "secret", "secretName")]
        mounted += _mounted(self.config_map_files, "configMap", "name")
        own = {
            "env": [_from_secret(name, key) for name, key in self.secret_env.items()],
            "envFrom": [
                *container.get("envFrom", []),
                *({"secretRef": {"name": name}} for name in self.env_from_secrets),
                *({"configMapRef": {"name": name}} for name in self.env_from_config_maps),
            ],
            "volumeMounts": [*(mount for _, mount in mounted), *self.volume_mounts],
            "resources": {
                kind: self.extra_resources
                for kind in ("requests", "limits")
                if self.extra_resources
            },
        }
        # A sidecar of a Job is an init container that goes on, so that the Job can end without it.
        sidecars = [each | {"restartPolicy": "Always"} for each in self.sidecars]
        spec = {
            "volumes": [*(volume for volume, _ in mounted), *self.volumes],
            "initContainers": [*sidecars, *self.init_containers],
            "containers": [{"name": container["name"]} | _without_empty(own)],
        }
        return {"spec": _without_empty(spec)}


_environment_of: tuple[Settings, dict[str, str]] | None = None


def _environment(settings: Settings) -> dict[str, str]:
    """Return the settings as variables: this takes 20 ms, and they stay the same."""
    global _environment_of
    if _environment_of is None or _environment_of[0] is not settings:
        _environment_of = settings, settings.to_environment_variables(exclude_unset=True)
    return dict(_environment_of[1])


def merged(base: Mapping[str, Any], patch: Mapping[str, Any]) -> Object:
    """Return a part of a pod template with another merged over it, as Kubernetes would.

    Mappings and containers are merged; items of other lists that have a key replace those with the
    same key; any other list is replaced; null removes a field.
    """
    result = dict(copy.deepcopy(base))
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            own = result.get(key)
            result[key] = merged(own if isinstance(own, Mapping) else {}, value)
        elif key in _MERGED or key in _REPLACED:
            result[key] = _list_merged(key, result.get(key) or [], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _list_merged(name: str, base: list[Object], patch: list[Object]) -> list[Object]:
    key = _MERGED.get(name) or _REPLACED[name]
    items = {each.get(key): each for each in base}
    for each in patch:
        under = items.get(each.get(key), {}) if name in _MERGED else {}
        items[each.get(key)] = merged(under, each)
    return list(items.values())


def _mounted(files: Mapping[str, str], kind: str, name: str) -> list[tuple[Object, Object]]:
    """Return a volume and its mount for each folder of files."""
    return [
        (
            {"name": f"{kind.lower()}-files-{number}", kind: {name: source}},
            {"name": f"{kind.lower()}-files-{number}", "mountPath": path, "readOnly": True},
        )
        for number, (path, source) in enumerate(files.items())
    ]


def _from_secret(variable: str, reference: str) -> Object:
    name, _, key = reference.partition("/")
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}


def _confine(pod: Object) -> None:
    """Add to each container what `restricted` requires, where it says nothing about it."""
    for key in ("initContainers", "containers"):
        for container in pod.get(key, []):
            container["securityContext"] = _CONFINED | (container.get("securityContext") or {})


def _without_empty(parts: Object) -> Object:
    return {key: value for key, value in parts.items() if value}
