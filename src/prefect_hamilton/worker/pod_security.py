"""What Pod Security `restricted` forbids, and which service accounts a flow pod may have.

Kubernetes would accept the Job and refuse its pod: the flow run would wait for a pod that never
comes. The worker asks here before it creates the Job.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

LEVEL = "PREFECT_HAMILTON_POD_SECURITY"
"""Variable of the worker: `restricted`, or `privileged` for pods that are not checked."""

SERVICE_ACCOUNTS = "PREFECT_HAMILTON_SERVICE_ACCOUNTS"
"""Variable of the worker: the allowed service accounts, separated by commas; unset allows all."""

_HOST = ("hostNetwork", "hostPID", "hostIPC")
_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SECCOMP = ("RuntimeDefault", "Localhost")
_SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}


def is_restricted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the worker holds flow pods to `restricted`."""
    return environment.get(LEVEL) == "restricted"


def refusal(spec: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> str | None:
    """Return, in one sentence, why a pod with this spec must not be created; None if it may."""
    account = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
    allowed = environment.get(SERVICE_ACCOUNTS)
    if allowed is not None and account not in allowed.split(","):
        return (
            f"No pod is created, because the service account {account} is not allowed: use one of "
            f"{', '.join(allowed.split(','))}, or add it to flows.allowedServiceAccounts."
        )
    if is_restricted(environment) and (found := list(violations(spec))):
        return (
            f"No pod is created, because Pod Security restricted forbids it: {'; '.join(found)}. "
            "Change the job variables of the deployment, or set flows.podSecurity to privileged."
        )
    return None


def violations(spec: Mapping[str, Any]) -> Iterator[str]:
    """Yield what Pod Security `restricted` forbids in the spec of a pod."""
    pod = spec.get("securityContext") or {}
    for key in _HOST:
        if spec.get(key):
            yield f"{key} is true"
    for volume in spec.get("volumes") or []:
        for kind in sorted(volume.keys() - {"name"} - _VOLUMES):
            yield f"volume {volume.get('name')} is of type {kind}"
    for sysctl in pod.get("sysctls") or []:
        if sysctl.get("name") not in _SYSCTLS:
            yield f"the sysctl {sysctl.get('name')} is set"
    yield from _shared("the pod", pod)
    for key in ("initContainers", "containers"):
        for container in spec.get(key) or []:
            yield from _of_container(container, pod)


def _of_container(container: Mapping[str, Any], pod: Mapping[str, Any]) -> Iterator[str]:
    name = f"container {container.get('name')}"
    own = container.get("securityContext") or {}
    if own.get("privileged"):
        yield f"{name} is privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name} does not set allowPrivilegeEscalation to false"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield f"{name} does not drop ALL capabilities"
    for added in sorted(set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}):
        yield f"{name} adds the capability {added}"
    if own.get("procMount", "Default") != "Default":
        yield f"{name} sets procMount"
    if any(port.get("hostPort") for port in container.get("ports") or []):
        yield f"{name} has a hostPort"
    yield from _shared(name, own)
    # Where a container sets nothing, the pod's setting counts, which has been looked at.
    if own.get("runAsNonRoot") is None and pod.get("runAsNonRoot") is None:
        yield f"{name} does not set runAsNonRoot to true"
    if own.get("seccompProfile") is None and pod.get("seccompProfile") is None:
        yield f"{name} has no seccompProfile RuntimeDefault or Localhost"


def _shared(name: str, context: Mapping[str, Any]) -> Iterator[str]:
    """Yield what neither a pod's nor a container's security context may contain."""
    if context.get("runAsUser") == 0:
        yield f"{name} runs as user 0"
    if context.get("runAsNonRoot") is False:
        yield f"{name} sets runAsNonRoot to false"
    profile = context.get("seccompProfile")
    if profile is not None and profile.get("type") not in _SECCOMP:
        yield f"{name} has no seccompProfile RuntimeDefault or Localhost"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{name} is a hostProcess"
    if (context.get("appArmorProfile") or {}).get("type") == "Unconfined":
        yield f"{name} is not confined by AppArmor"
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type", "") not in _SELINUX or selinux.get("user") or selinux.get("role"):
        yield f"{name} sets seLinuxOptions"
