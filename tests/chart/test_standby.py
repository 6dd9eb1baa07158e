"""Standby pods: the settings that the worker gets, and the values that are refused."""

from typing import Any

import pytest

from tests.chart.charts import Object, RenderError, env, pod_template, render

PREFIX = "PREFECT_HAMILTON_"
ITS_POD = {f"{PREFIX}WORKER_POD_NAME": {"fieldRef": {"fieldPath": "metadata.name"}}}


def told(values: Object, pool: str = "kubernetes") -> dict[str, Any]:
    """What the environment of a pool's worker says about standby pods and its own pod."""
    template = pod_template(render(values).get("Deployment", f"-worker-{pool}"))
    assert template is not None
    (container,) = template["spec"]["containers"]
    words = (f"{PREFIX}STANDBY", f"{PREFIX}WORKER_POD")
    return {name: value for name, value in env(container).items() if name.startswith(words)}


def test_there_are_none_by_default() -> None:
    assert told({}) == ITS_POD


def test_a_worker_knows_its_standby_pods_and_itself() -> None:
    standby = {"count": 2, "maxAgeSeconds": 600, "preload": ["pandas", "hamilton.driver"]}
    assert told({"flows": {"standby": standby}}) == {
        f"{PREFIX}STANDBY_COUNT": "2",
        f"{PREFIX}STANDBY_MAX_AGE_SECONDS": "600",
        f"{PREFIX}STANDBY_PRELOAD": "pandas,hamilton.driver",
        **ITS_POD,
        f"{PREFIX}WORKER_POD_UID": {"fieldRef": {"fieldPath": "metadata.uid"}},
    }


def test_a_pool_can_have_its_own() -> None:
    pools = {"a": {}, "b": {"flows": {"standby": {"count": 3}}}}
    values = {"flows": {"standby": {"maxAgeSeconds": 300}}, "workers": pools}
    assert told(values, "a") == ITS_POD
    assert told(values, "b")[f"{PREFIX}STANDBY_COUNT"] == "3"
    assert told(values, "b")[f"{PREFIX}STANDBY_MAX_AGE_SECONDS"] == "300"


def test_a_pool_can_have_none() -> None:
    none = {"flows": {"standby": {"count": 0}}}
    values = {"flows": {"standby": {"count": 2}}, "workers": {"a": none, "b": {}}}
    assert told(values, "a") == ITS_POD
    assert told(values, "b")[f"{PREFIX}STANDBY_COUNT"] == "2"


def test_a_pod_of_another_namespace_cannot_own_them() -> None:
    found = told({"flows": {"namespace": "elsewhere", "standby": {"count": 1}}})
    assert not [name for name in found if "WORKER_POD" in name]
    apart = {"workers": {"a": {"flows": {"namespace": "team-a", "standby": {"count": 1}}}}}
    assert not [name for name in told(apart, "a") if "WORKER_POD" in name]


@pytest.mark.parametrize(
    ("standby", "message"),
    [
        ({"preload": ["pandas; rm"]}, "the name of a Python module, such as pandas"),
        ({"count": -1}, "count"),
        ({"maxAgeSeconds": 5}, "maxAgeSeconds"),
    ],
)
def test_a_wrong_value_is_refused(standby: Object, message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render({"flows": {"standby": standby}})
