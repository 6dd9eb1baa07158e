"""`global.proxy` and `global.caBundle` reach every pod that sends requests."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.chart.charts import (
    COMPONENT,
    Object,
    Release,
    RenderError,
    containers,
    env,
    labels,
    pod_template,
    render,
)

PASSIVE = {"postgres", "valkey", "git-server"}
"""Components that send no requests."""

EXTRA = {"extra", "prepare", "proxy", "sidecar"}
"""Containers of everything.yaml that are the user's."""

BUNDLE = "/ca-bundle/ca.crt"


def pods(release: Release) -> Iterator[tuple[str, Object]]:
    """Pods that send requests, with those of the flows; each with the name of its component."""
    for obj in release.objects:
        template = pod_template(obj)
        if template is not None and labels(obj)[COMPONENT] not in PASSIVE:
            yield labels(obj)[COMPONENT], template
    data = release.get("ConfigMap", "-bootstrap")["data"]
    for name, text in data.items():
        if name.startswith("base-job-template-"):
            job = yaml.safe_load(text)["job_configuration"]["job_manifest"]
            yield name, job["spec"]["template"]


def variables(release: Release, *, but: set[str] = EXTRA) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod in pods(release):
        for container in containers(pod):
            if container["name"] not in but:
                yield f"{name}/{container['name']}", env(container)


def test_every_pod_has_the_proxy(profiles: dict[str, Release]) -> None:
    names = set()
    for name, found in variables(profiles["everything"]):
        names.add(name.split("/")[0])
        assert found["http_proxy"] == found["HTTP_PROXY"] == "http://proxy.example.org:3128", name
        assert found["https_proxy"] == found["HTTPS_PROXY"] == "http://proxy.example.org:3129", name
        exceptions = found["NO_PROXY"].split(",")
        assert found["no_proxy"] == found["NO_PROXY"], name
        assert {"$(KUBERNETES_SERVICE_HOST)", ".svc", ".example.org"} <= set(exceptions), name
    assert len(names) == 11, names


def test_requests_in_the_cluster_do_not_go_through_the_proxy(profiles: dict[str, Release]) -> None:
    for name, found in variables(profiles["everything"]):
        exceptions = found["NO_PROXY"].split(",")
        for variable in ("PREFECT_API_URL", "HAMILTON_API_URL"):
            if variable in found:
                host = found[variable].split("/")[2].split(":")[0]
                assert host in exceptions, f"{name}: {variable}"


def test_every_pod_has_the_bundle(profiles: dict[str, Release]) -> None:
    for name, pod in pods(profiles["everything"]):
        [volume] = [v for v in pod["spec"]["volumes"] if v["name"] == "ca-bundle"]
        assert volume["configMap"] == {
            "name": "authorities",
            "items": [{"key": "bundle.pem", "path": "ca.crt"}],
        }, name
        for container in containers(pod):
            if container["name"] not in EXTRA:
                assert env(container)["SSL_CERT_FILE"] == BUNDLE, container["name"]
                mounts = [m["mountPath"] for m in container["volumeMounts"]]
                assert mounts.count("/ca-bundle") == 1, f"{name}: {container['name']}"


def test_where_egress_is_restricted_the_proxy_can_be_reached(profiles: dict[str, Release]) -> None:
    rule = {"ports": [{"port": 3128, "protocol": "TCP"}, {"port": 3129, "protocol": "TCP"}]}
    for policy in profiles["everything"].of("NetworkPolicy"):
        allowed = rule in policy["spec"].get("egress", [])
        assert allowed == (labels(policy)[COMPONENT] not in PASSIVE), policy["metadata"]["name"]


def test_a_proxy_with_a_password_is_in_a_secret() -> None:
    proxy = {"existingSecret": "proxy", "port": 8080}
    release = render({"global": {"proxy": proxy, "caBundle": {"secret": "authorities"}}})
    for name, found in variables(release):
        reference = {"name": "proxy", "key": "https-proxy", "optional": True}
        assert found["HTTPS_PROXY"] == found["https_proxy"] == {"secretKeyRef": reference}, name
    policy = release.get("NetworkPolicy", "-worker")
    assert {"ports": [{"port": 8080, "protocol": "TCP"}]} in policy["spec"]["egress"]


def test_a_setting_of_a_component_wins() -> None:
    proxy = {"http": "http://proxy:3128"}
    server = {"env": {"HTTP_PROXY": None, "NO_PROXY": "*"}}
    release = render({"global": {"proxy": proxy}, "server": server})
    [main] = release.get("Deployment", "-server")["spec"]["template"]["spec"]["containers"]
    assert "HTTP_PROXY" not in env(main)
    assert env(main)["NO_PROXY"] == "*"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"proxy": {"http": "http://ana:geheim@proxy:3128"}}, "global.proxy.existingSecret"),
        (
            {"proxy": {"http": "http://proxy", "existingSecret": "proxy"}},
            "remove global.proxy.http and global.proxy.https",
        ),
        ({"caBundle": {"configMap": "a", "secret": "b"}}, "remove one of them"),
    ],
)
def test_mistakes_are_reported(values: Object, message: str) -> None:
    with pytest.raises(RenderError) as error:
        render({"global": values})
    assert message in str(error.value)
    assert "geheim" not in str(error.value)


def test_services_have_the_families_of_addresses() -> None:
    families = {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6", "IPv4"]}
    release = render(
        {"global": families, "gitServer": {"enabled": True}, "valkey": {"enabled": True}}
    )
    services = [obj for obj in release.objects if obj["kind"] == "Service"]
    assert len(services) > 4
    for service in services:
        assert {name: service["spec"].get(name) for name in families} == families


def test_the_cluster_decides_about_families_of_addresses() -> None:
    for obj in render().objects:
        if obj["kind"] == "Service":
            assert not {"ipFamilyPolicy", "ipFamilies"} & set(obj["spec"])
