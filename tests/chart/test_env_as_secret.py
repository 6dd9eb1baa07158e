"""The environment of flow runs in Secrets: where it is on, the right it needs, what excludes it."""

from typing import Any

import pytest

from tests.chart.charts import Object, RenderError, env, pod_template, render

SWITCH = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_STORE_ENV_AS_SECRET"
RIGHT = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}
ON: Object = {"flows": {"storeEnvAsSecret": True}}


def switch(values: Object, pool: str) -> Any:
    template = pod_template(render(values).get("Deployment", f"-worker-{pool}"))
    assert template is not None
    (container,) = template["spec"]["containers"]
    return env(container).get(SWITCH)


def namespaces_with_the_right(values: Object) -> list[str]:
    return [
        role["metadata"]["namespace"]
        for role in render(values).of("Role")
        if role["metadata"]["name"].endswith("-worker") and RIGHT in role["rules"]
    ]


def test_it_is_off_by_default() -> None:
    assert switch({}, "kubernetes") is None
    assert namespaces_with_the_right({}) == []


def test_a_pool_can_have_it_alone() -> None:
    values = {"workers": {"a": {}, "b": ON}}
    assert switch(values, "a") is None
    assert switch(values, "b") == "true"


def test_a_pool_can_do_without() -> None:
    values = {**ON, "workers": {"a": {}, "b": {"flows": {"storeEnvAsSecret": False}}}}
    assert switch(values, "a") == "true"
    assert switch(values, "b") is None


def test_the_right_is_in_the_namespace_of_the_flow_pods_only() -> None:
    assert namespaces_with_the_right({"flows": {"namespace": "flow-runs"} | ON["flows"]}) == [
        "flow-runs"
    ]
    apart = {"flows": {"namespace": "team-b"} | ON["flows"]}
    other = {"flows": {"namespace": "team-a"}}
    assert namespaces_with_the_right({"workers": {"a": other, "b": apart, "c": {}}}) == ["team-b"]


@pytest.mark.parametrize(
    "values",
    [
        {"flows": {"storeEnvAsSecret": True, "standby": {"count": 1}}},
        {**ON, "workers": {"kubernetes": {"flows": {"standby": {"count": 1}}}}},
        {"flows": {"standby": {"count": 1}}, "workers": {"kubernetes": ON}},
    ],
)
def test_it_is_refused_with_standby_pods(values: Object) -> None:
    said = "The work pool kubernetes has flows.storeEnvAsSecret and standby pods"
    with pytest.raises(RenderError, match=said):
        render(values)


def test_another_pool_may_have_standby_pods() -> None:
    none = {"flows": {"standby": {"count": 0}, "storeEnvAsSecret": True}}
    values = {"flows": {"standby": {"count": 1}}, "workers": {"a": {}, "b": none}}
    assert switch(values, "a") is None
    assert switch(values, "b") == "true"
