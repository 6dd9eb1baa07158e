"""What a deployment adds to its pod by job variables, and an operator by flows.podTemplate."""

from typing import Any

import jsonschema
import pytest

from prefect_hamilton.worker import pod_security
from tests.chart.charts import Object, Release, RenderError, check, env, pod_template, render
from tests.chart.test_flow_pods import flow_job, template

AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]
        }
    }
}
VARIABLES: Object = {
    "secret_env": {"TOKEN": "api/token"},
    "env_from_secrets": ["more"],
    "env_from_config_maps": ["settings"],
    "secret_files": {"/etc/api": "api"},
    "config_map_files": {"/etc/app": "settings"},
    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
    "volume_mounts": [{"name": "data", "mountPath": "/data"}],
    "extra_resources": {"nvidia.com/gpu": 1, "ephemeral-storage": "2Gi"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": AFFINITY,
    "priority_class_name": "high",
    "runtime_class_name": "nvidia",
    "init_containers": [{"name": "prepare", "image": "tools:1", "command": ["prepare"]}],
    "sidecars": [{"name": "proxy", "image": "proxy:1"}],
    "service_account_name": "reader",
    "labels": {"team": "data"},
    "annotations": {"example.org/cost": "a"},
}


@pytest.fixture(autouse=True)
def _worker_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://demo-prefect-hamilton-server:4200/api")
    monkeypatch.setenv(pod_security.LEVEL, "restricted")


def test_each_variable_reaches_the_pod(default: Release) -> None:
    base = template(default)
    jsonschema.validate(VARIABLES, base["variables"])
    job = flow_job(base, VARIABLES)
    check(job)
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert env(container)["TOKEN"] == {"secretKeyRef": {"name": "api", "key": "token"}}
    assert "WAREHOUSE_URL" in env(container)
    assert container["envFrom"] == [
        {"secretRef": {"name": "more"}},
        {"configMapRef": {"name": "settings"}},
    ]
    kinds = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    sources = {volume["name"]: volume for volume in pod["volumes"]}
    assert sources[kinds["/etc/api"]]["secret"] == {"secretName": "api"}
    assert sources[kinds["/etc/app"]]["configMap"] == {"name": "settings"}
    assert sources[kinds["/data"]]["persistentVolumeClaim"] == {"claimName": "data"}
    assert kinds["/tmp"] == "tmp"
    for part in ("requests", "limits"):
        assert container["resources"][part].items() >= VARIABLES["extra_resources"].items()
    assert container["resources"]["limits"]["memory"] == "512Mi"
    assert pod["tolerations"] == VARIABLES["tolerations"]
    assert pod["affinity"] == AFFINITY
    assert (pod["priorityClassName"], pod["runtimeClassName"]) == ("high", "nvidia")
    assert pod["serviceAccountName"] == "reader"
    sidecar, first = pod["initContainers"]
    assert (sidecar["name"], sidecar["restartPolicy"]) == ("proxy", "Always")
    assert (first["name"], first["command"]) == ("prepare", ["prepare"])
    assert job["spec"]["template"]["metadata"]["labels"]["team"] == "data"
    assert job["spec"]["template"]["metadata"]["annotations"] == VARIABLES["annotations"]


def test_the_form_shows_each_variable_in_words(default: Release) -> None:
    properties = template(default)["variables"]["properties"]
    assert set(VARIABLES) <= set(properties)
    for name, variable in properties.items():
        assert variable["title"] and variable["description"].endswith("."), name
        assert variable["type"], name


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("secret_env", {"TOKEN": "api"}),
        ("volumes", [{"emptyDir": {}}]),
        ("tolerations", {"key": "gpu"}),
        ("env_from_secrets", "api"),
        ("sidecars", [{"name": "proxy"}]),
    ],
)
def test_a_variable_of_a_wrong_form_is_rejected(default: Release, name: str, wrong: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({name: wrong}, template(default)["variables"])


CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
SETTINGS: Object = {
    "initContainers": [{"name": "first", "image": "tools:1", "securityContext": CONFINED}],
    "sidecars": [{"name": "proxy", "image": "proxy:1", "securityContext": CONFINED}],
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "schedulerName": "batch",
    "dnsPolicy": "Default",
    "runtimeClassName": "sandbox",
    "hostAliases": [{"ip": "192.0.2.10", "hostnames": ["git.example.org"]}],
    "dnsConfig": {"nameservers": ["192.0.2.53"]},
    "priorityClassName": "low",
}
SHARED = ("schedulerName", "dnsPolicy", "runtimeClassName", "hostAliases", "dnsConfig")


def test_pools_have_the_pod_settings_of_flows() -> None:
    job = flow_job(template(render({"workers": {"gpu": {"flows": SETTINGS}}}), "gpu"))
    check(job)
    pod = job["spec"]["template"]["spec"]
    for key in set(SETTINGS) - {"sidecars", "initContainers"}:
        assert pod[key] == SETTINGS[key], key
    assert [each["name"] for each in pod["initContainers"]] == ["proxy", "first"]
    assert pod["initContainers"][0]["restartPolicy"] == "Always"


def test_every_pod_has_the_shared_settings_of_global() -> None:
    values = {key: SETTINGS[key] for key in SHARED}
    release = render({"global": values, "hamiltonUi": {"dnsPolicy": "ClusterFirst"}})
    specs = [t["spec"] for obj in release.objects if (t := pod_template(obj))]
    assert len(specs) > 5
    for spec in [*specs, flow_job(template(release))["spec"]["template"]["spec"]]:
        for key in set(SHARED) - {"dnsPolicy"}:
            assert spec[key] == values[key], key
    assert {spec["dnsPolicy"] for spec in specs} == {"Default", "ClusterFirst"}


def test_the_pod_template_is_merged_over_all_else() -> None:
    patch = {
        "metadata": {"labels": {"cost": "a"}},
        "spec": {
            "shareProcessNamespace": True,
            "serviceAccountName": "fixed",
            "nodeSelector": {"disk": "ssd"},
            "containers": [{"name": "prefect-job", "env": [{"name": "A", "value": "operator"}]}],
        },
    }
    release = render({"flows": {"podTemplate": patch, "allowedServiceAccounts": ["reader"]}})
    variables = {"env": {"A": "deployment", "B": "b"}, "node_selector": {"zone": "a"}}
    job = flow_job(template(release), variables)
    check(job)
    pod = job["spec"]["template"]["spec"]
    assert pod["shareProcessNamespace"] is True
    assert pod["serviceAccountName"] == "fixed"
    assert pod["nodeSelector"] == {"disk": "ssd", "zone": "a"}
    assert env(pod["containers"][0]).items() >= {"A": "operator", "B": "b"}.items()
    assert job["spec"]["template"]["metadata"]["labels"]["cost"] == "a"
    assert worker_env(release)[pod_security.SERVICE_ACCOUNTS] == (
        "demo-prefect-hamilton-flows,reader,fixed"
    )


def worker_env(release: Release, pool: str = "kubernetes") -> Object:
    deployment = release.get("Deployment", f"worker-{pool}")
    return env(deployment["spec"]["template"]["spec"]["containers"][0])


def test_the_worker_holds_flow_pods_to_the_values(default: Release) -> None:
    found = worker_env(default)
    assert found[pod_security.LEVEL] == "restricted"
    assert found[pod_security.SERVICE_ACCOUNTS] == "demo-prefect-hamilton-flows"
    own = {"flows": {"podSecurity": "privileged", "allowedServiceAccounts": ["builder"]}}
    release = render({"workers": {"builds": own, "others": {}}})
    assert worker_env(release, "builds")[pod_security.LEVEL] == "privileged"
    assert worker_env(release, "builds")[pod_security.SERVICE_ACCOUNTS].endswith(",builder")
    assert worker_env(release, "others")[pod_security.LEVEL] == "restricted"


BREACHES: list[tuple[Object, str]] = [
    ({"spec": {"hostNetwork": True}}, "hostNetwork is true"),
    (
        {"spec": {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}},
        "volume root is of type hostPath",
    ),
    ({"spec": {"securityContext": {"runAsUser": 0}}}, "the pod runs as user 0"),
    *(
        (
            {"spec": {"containers": [{"name": "prefect-job", "securityContext": context}]}},
            f"prefect-job {words}",
        )
        for context, words in (
            ({"privileged": True}, "is privileged"),
            ({"capabilities": {"add": ["SYS_ADMIN"]}}, "adds the capability SYS_ADMIN"),
            ({"capabilities": {"drop": []}}, "does not drop ALL capabilities"),
            ({"allowPrivilegeEscalation": True}, "sets allowPrivilegeEscalation"),
            ({"runAsNonRoot": False}, "sets runAsNonRoot to false"),
        )
    ),
]


@pytest.mark.parametrize(("patch", "words"), BREACHES, ids=[words for _, words in BREACHES])
def test_a_pod_template_that_breaks_restricted_is_refused(patch: Object, words: str) -> None:
    with pytest.raises(RenderError) as caught:
        render({"flows": {"podTemplate": patch}})
    assert f"The podTemplate of the flow pods of kubernetes: {words}, which" in str(caught.value)
    assert render({"flows": {"podTemplate": patch, "podSecurity": "privileged"}}).objects


def test_containers_of_the_values_need_no_security_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(pod_security.LEVEL, "restricted")
    others = {
        "initContainers": [{"name": "first", "image": "tools:1"}],
        "sidecars": [{"name": "beside", "image": "tools:1"}],
        "podTemplate": {"spec": {"containers": [{"name": "more", "image": "tools:1"}]}},
    }
    pod = flow_job(template(render({"flows": others})))["spec"]["template"]["spec"]
    names = [each["name"] for key in ("initContainers", "containers") for each in pod[key]]
    assert sorted(names) == ["beside", "first", "more", "prefect-job"]
    assert list(pod_security.violations(pod)) == []


def test_a_misspelt_field_of_a_pod_template_is_refused() -> None:
    with pytest.raises(RenderError, match="hostNetwrk"):
        render({"flows": {"podTemplate": {"spec": {"hostNetwrk": True}}}})
