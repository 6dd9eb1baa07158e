"""The worker's Role holds what prefect-kubernetes asks of Kubernetes, and nothing else.

What it asks is read from the installed package, so that a version that asks for more is noticed.
"""

import ast
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.chart.charts import Object, Release, env, pod_template, render

# Each rule of the Role, and the calls of prefect-kubernetes 0.8.0 that fail without it.
NEEDED: dict[tuple[str, str, str], set[str]] = {
    # Each flow run is a Job, deleted when the run is cancelled.
    ("batch", "jobs", "create"): {"worker.create_namespaced_job"},
    ("batch", "jobs", "delete"): {"worker.delete_namespaced_job"},
    # Whether a Job that ended, or seems to be gone, has a successor or is only relabelled.
    ("batch", "jobs", "list"): {"observer.list_namespaced_job", "observer.on.event jobs"},
    ("batch", "jobs", "get"): {"observer.read_namespaced_job"},
    # Ended Jobs make their runs Crashed.
    ("batch", "jobs", "watch"): {"observer.on.event jobs"},
    # Pods' phases become events; what keeps one from starting goes to the run's log.
    ("", "pods", "list"): {"observer.list_namespaced_pod", "observer.on.event pods"},
    ("", "pods", "watch"): {"observer.on.event pods"},
    # The last lines of a crashed pod go to the run's log.
    ("", "pods/log", "get"): {"observer.read_namespaced_pod_log"},
}
# What standby pods add, and the calls of this project's worker.
STANDBY: dict[tuple[str, str, str], set[str]] = {
    # A standby Job becomes that of a flow run, and so does its pod.
    ("batch", "jobs", "patch"): {"claim.patch_namespaced_job"},
    ("", "pods", "patch"): {"claim.patch_namespaced_pod"},
    # Whether a pod lives that has not confirmed its flow run.
    ("", "pods", "get"): {"claim.read_namespaced_pod"},
    # Its flow run is written to its standard input. Kubernetes 1.35 requires create, too.
    ("", "pods/attach", "get"): {"claim.connect_get_namespaced_pod_attach"},
    ("", "pods/attach", "create"): {"claim.connect_get_namespaced_pod_attach"},
}
# Calls for standby pods that the other rights allow.
ALLOWED = {
    "claim.delete_namespaced_job",
    "claim.list_namespaced_pod",
    "reserve.create_namespaced_job",
    "reserve.list_namespaced_job",
    "reserve.list_namespaced_pod",
}
# What flows.storeEnvAsSecret adds.
ENV_AS_SECRET: dict[tuple[str, str, str], set[str]] = {
    ("", "secrets", "create"): {"env_secret.create_namespaced_secret"},
}
NO_API_KEY = "CREATE_SECRET_FOR_API_KEY is not set"
OWN = ", and env_secret does what STORE_ENV_AS_SECRET asks for"
# Calls that are never made with the chart's settings, and why.
NOT_MADE = {
    "observer.list_pod_for_all_namespaces": "OBSERVER_NAMESPACES is set",
    "worker.create_namespaced_secret": NO_API_KEY + OWN,
    "worker.delete_namespaced_secret": NO_API_KEY + OWN,
    "worker.patch_namespaced_secret": NO_API_KEY + OWN,
    "worker.read_namespaced_secret": NO_API_KEY,
    "worker.replace_namespaced_secret": NO_API_KEY,
}
CALL = re.compile(
    r"(connect|create|delete|list|patch|read|replace|watch)_\w*(namespaced|namespaces?)(_|$)"
)


def calls(
    package: str = "prefect_kubernetes",
    modules: Iterable[str] = ("worker", "observer", "diagnostics"),
) -> set[str]:
    """Return the calls of the worker's modules: `module.method`, or `module.on.event RESOURCE`."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    found = set()
    for module in modules:
        tree = ast.parse((Path(spec.origin).parent / f"{module}.py").read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if CALL.match(node.func.attr):
                found.add(f"{module}.{node.func.attr}")
            elif ast.unparse(node.func) == "kopf.on.event":
                resource = [a.value for a in node.args if isinstance(a, ast.Constant)][-1]
                found.add(f"{module}.on.event {resource}")
    return found


def rules(role: Object) -> set[tuple[str, str, str]]:
    """Return a Role's rules, one for each verb: group, resource, verb."""
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_role_has_exactly_the_rights_that_are_used(default: Release) -> None:
    assert rules(default.get("Role", "worker")) == set(NEEDED)


@pytest.mark.parametrize(
    "values",
    [
        {"flows": {"standby": {"count": 1}}},
        {"workers": {"a": {}, "b": {"flows": {"standby": {"count": 1}}}}},
    ],
)
def test_standby_pods_need_more_rights(values: Object) -> None:
    assert rules(render(values).get("Role", "worker")) == set(NEEDED) | set(STANDBY)


def test_the_table_lists_every_call_for_standby_pods() -> None:
    found = calls("prefect_hamilton.worker", ("claim", "reserve", "standby"))
    assert set().union(*STANDBY.values()) | ALLOWED == found


@pytest.mark.parametrize(
    "values",
    [
        {"flows": {"storeEnvAsSecret": True}},
        {"workers": {"a": {}, "b": {"flows": {"storeEnvAsSecret": True}}}},
    ],
)
def test_an_environment_in_secrets_needs_a_right(values: Object) -> None:
    assert rules(render(values).get("Role", "worker")) == set(NEEDED) | set(ENV_AS_SECRET)


def test_the_table_lists_every_call_for_an_environment_in_secrets() -> None:
    found = calls("prefect_hamilton.worker", ["env_secret"])
    assert set().union(*ENV_AS_SECRET.values()) == found


@pytest.mark.parametrize("place", ["server", "global"])
def test_clients_fetch_csrf_tokens_only_where_the_server_wants_them(place: str) -> None:
    def fetches(values: dict[str, object]) -> str:
        worker = pod_template(render(values).get("Deployment", "-worker-kubernetes"))
        assert worker is not None
        (container,) = worker["spec"]["containers"]
        return str(env(container)["PREFECT_CLIENT_CSRF_SUPPORT_ENABLED"])

    assert fetches({}) == "false"
    wanted = {place: {"env": {"PREFECT_SERVER_CSRF_PROTECTION_ENABLED": True}}}
    assert fetches(wanted) == "true"


def test_the_table_lists_every_call_of_the_installed_version() -> None:
    assert set().union(*NEEDED.values()) | set(NOT_MADE) == calls()


def test_settings_prevent_the_other_kubernetes_calls(default: Release) -> None:
    found = env(
        pod_template(default.get("Deployment", "worker-kubernetes"))["spec"]["containers"][0]
    )
    own_namespace = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    assert found["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"] == own_namespace
    switches = ("CREATE_SECRET_FOR_API_KEY", "STORE_ENV_AS_SECRET")
    assert not [name for name in found if name.endswith(switches)]
