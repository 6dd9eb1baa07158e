"""Work pools whose flow pods have a namespace of their own."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.chart.charts import COMPONENT, Object, Release, RenderError, env, pod_template, render
from tests.chart.test_flow_pods import bootstrap_state, flow_job, template
from tests.chart.test_security import peers
from tests.chart.test_worker_role import NEEDED, rules

FULLNAME = "demo-prefect-hamilton"
POOL = "prefect-hamilton/work-pool"
PRIVATE = [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]
VALUES: Object = {
    "workers": {
        "common": {},
        "team-a": {
            "hamiltonUi": {"project": "team-a", "users": ["ada@example.org"]},
            "networkPolicy": {"flowsEgress": PRIVATE},
            "flows": {
                "namespace": "team-a",
                "serviceAccount": {"annotations": {"identity": "a"}},
                "env": {"WAREHOUSE_URL": {"secretKeyRef": {"name": "warehouse", "key": "url"}}},
            },
        },
        "team-b": {
            "flows": {
                "namespace": "team-b",
                "serviceAccount": {"create": False, "name": "readers"},
            }
        },
    },
    "networkPolicy": {"flowsEgress": [], "webFrom": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]},
    "gitServer": {"enabled": True},
}


@pytest.fixture(scope="module")
def release() -> Release:
    return render(VALUES)


def in_namespace(release: Release, kind: str, name: str, namespace: str) -> Object:
    found = [
        o
        for o in release.of(kind)
        if o["metadata"]["name"] == name and o["metadata"]["namespace"] == namespace
    ]
    assert len(found) == 1, f"{len(found)} of {kind} {namespace}/{name}"
    return found[0]


def worker(release: Release, pool: str) -> Object:
    found = pod_template(release.get("Deployment", f"-worker-{pool}"))
    assert found is not None
    return dict(found["spec"])


def test_nothing_else_is_outside_of_the_releases_namespace(release: Release) -> None:
    """And nothing is in no namespace: there is no ClusterRole."""
    outside = {
        (o["metadata"].get("namespace"), o["kind"], o["metadata"]["name"].removeprefix(FULLNAME))
        for o in release.objects
        if o["metadata"].get("namespace") != "flows"
    }
    of_each = {
        ("NetworkPolicy", "-flows"),
        ("Role", "-worker"),
        ("Role", "-secrets"),
        ("RoleBinding", "-worker"),
        ("RoleBinding", "-secrets"),
    }
    assert outside == {(team, *each) for team in ("team-a", "team-b") for each in of_each} | {
        ("team-a", "ServiceAccount", "-flows"),
        ("team-a", "NetworkPolicy", "-flows-team-a"),
    }


@pytest.mark.parametrize(
    ("pool", "namespace", "account"),
    [
        ("common", "flows", f"{FULLNAME}-flows"),
        ("team-a", "team-a", f"{FULLNAME}-flows"),
        ("team-b", "team-b", "readers"),
    ],
)
def test_the_pods_of_a_pool_are_created_there(
    release: Release,
    pool: str,
    namespace: str,
    account: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://server:4200/api")
    job = flow_job(template(release, pool))
    assert job["metadata"]["namespace"] == namespace
    assert job["spec"]["template"]["spec"]["serviceAccountName"] == account
    found = env(worker(release, pool)["containers"][0])
    assert found["PREFECT_HAMILTON_SERVICE_ACCOUNTS"] == account


@pytest.mark.parametrize("pool", ["team-a", "team-b"])
def test_a_worker_has_rights_and_eyes_in_the_namespace_of_its_pool_alone(
    release: Release, pool: str
) -> None:
    spec = worker(release, pool)
    account = f"{FULLNAME}-worker-{pool}"
    assert spec["serviceAccountName"] == account
    assert in_namespace(release, "ServiceAccount", account, "flows")
    bindings = [
        (binding["metadata"]["namespace"], binding["roleRef"]["name"])
        for binding in release.of("RoleBinding")
        if {"kind": "ServiceAccount", "name": account, "namespace": "flows"} in binding["subjects"]
    ]
    assert bindings == [(pool, f"{FULLNAME}-worker")]
    role = in_namespace(release, "Role", f"{FULLNAME}-worker", pool)
    assert rules(role) == set(NEEDED)
    found = env(spec["containers"][0])
    assert found["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"] == pool


def test_other_pools_keep_their_worker_account(release: Release) -> None:
    assert worker(release, "common")["serviceAccountName"] == f"{FULLNAME}-worker"
    binding = in_namespace(release, "RoleBinding", f"{FULLNAME}-worker", "flows")
    assert [each["name"] for each in binding["subjects"]] == [f"{FULLNAME}-worker"]


def test_a_service_account_can_have_the_identity_of_a_team(release: Release) -> None:
    of_a = in_namespace(release, "ServiceAccount", f"{FULLNAME}-flows", "team-a")
    assert of_a["metadata"]["annotations"] == {"identity": "a"}
    common = in_namespace(release, "ServiceAccount", f"{FULLNAME}-flows", "flows")
    assert "annotations" not in common["metadata"]


def test_services_have_addresses_that_all_flow_pods_find(release: Release) -> None:
    for pool in ("common", "team-a", "team-b"):
        found = env(worker(release, pool)["containers"][0])
        assert found["PREFECT_API_URL"] == f"http://{FULLNAME}-server.flows:4200/api"
    bootstrap = env(release.job("bootstrap")["spec"]["template"]["spec"]["containers"][0])
    assert bootstrap["HAMILTON_API_URL"] == f"http://{FULLNAME}-ui.flows:8241"
    assert bootstrap["FLOWS_REPOSITORY"] == f"git://{FULLNAME}-git-server.flows/flows.git"


def flow_policies(release: Release, namespace: str) -> dict[str, Object]:
    """The policies of flow pods there, by name without the release's."""
    return {
        p["metadata"]["name"].removeprefix(f"{FULLNAME}-"): p["spec"]
        for p in release.of("NetworkPolicy")
        if p["metadata"]["namespace"] == namespace
        and p["spec"]["podSelector"]["matchLabels"][COMPONENT] == "flow-run"
    }


def test_flow_pods_reach_what_their_pool_needs_and_nothing_reaches_them(release: Release) -> None:
    services = {"server", "hamilton-ui", "git-server"}
    wanted = {
        ("flows", "flows"): services | {"postgres"},
        ("team-a", "flows"): services,
        ("team-a", "flows-team-a"): services,
        ("team-b", "flows"): services | {"postgres"},
    }
    found = {
        (namespace, name): spec
        for namespace in ("flows", "team-a", "team-b")
        for name, spec in flow_policies(release, namespace).items()
    }
    assert set(found) == set(wanted)
    for (namespace, name), spec in found.items():
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert "ingress" not in spec
        reached = set().union(*(peers(r, "to") for r in spec["egress"] if r not in PRIVATE))
        assert reached == wanted[namespace, name]
        for rule in spec["egress"]:
            for peer in rule.get("to", []) if rule not in PRIVATE else []:
                selector = peer.get("namespaceSelector", {}).get("matchLabels")
                here = {"kubernetes.io/metadata.name": "flows"}
                assert selector == (None if namespace == "flows" else here)


def test_egress_of_a_pool_is_for_its_pods_alone(release: Release) -> None:
    found = flow_policies(release, "team-a")
    assert PRIVATE[0] in found["flows-team-a"]["egress"]
    assert PRIVATE[0] not in found["flows"]["egress"]
    assert found["flows-team-a"]["podSelector"]["matchLabels"][POOL] == "team-a"
    (others,) = found["flows"]["podSelector"]["matchExpressions"]
    assert others == {"key": POOL, "operator": "NotIn", "values": ["team-a"]}


def test_services_let_in_the_flow_pods_of_each_namespace(release: Release) -> None:
    everywhere = {None, "team-a", "team-b"}
    wanted = {
        "server": everywhere,
        "ui": everywhere,
        "git-server": everywhere,
        "postgres": {None, "team-b"},
    }
    for name, namespaces in wanted.items():
        (rule,) = release.get("NetworkPolicy", f"hamilton-{name}")["spec"]["ingress"]
        found = {
            peer.get("namespaceSelector", {})
            .get("matchLabels", {})
            .get("kubernetes.io/metadata.name")
            for peer in rule["from"]
            if peer.get("podSelector", {}).get("matchLabels", {}).get(COMPONENT) == "flow-run"
        }
        assert found == namespaces, name


def test_the_secrets_job_may_only_create_in_the_namespaces_of_pools(release: Release) -> None:
    for team in ("team-a", "team-b"):
        role = in_namespace(release, "Role", f"{FULLNAME}-secrets", team)
        assert rules(role) == {("", "secrets", "create")}
    own = in_namespace(release, "Role", f"{FULLNAME}-secrets", "flows")
    reads = [rule for rule in own["rules"] if rule["verbs"] == ["get"]]
    assert [sorted(rule["resourceNames"]) for rule in reads] == [
        [f"{FULLNAME}-{name}" for name in ("auth", "hamilton-ui", "postgres")]
    ]


def test_without_a_shared_warehouse_its_secret_is_not_read() -> None:
    own = {"env": {"WAREHOUSE_URL": {"secretKeyRef": {"name": "warehouse", "key": "url"}}}}
    pools = {team: {"flows": {"namespace": team, **own}} for team in ("team-a", "team-b")}
    release = render({"workers": pools})
    own_role = in_namespace(release, "Role", f"{FULLNAME}-secrets", "flows")
    assert f"{FULLNAME}-postgres" not in json.dumps(own_role)
    (rule,) = release.get("NetworkPolicy", "-postgres")["spec"]["ingress"]
    assert "flow-run" not in peers(rule, "from")
    # Nothing is left for flow pods in the release's namespace.
    assert not flow_policies(release, "flows")
    assert not [
        o
        for o in (*release.of("Role"), *release.of("ServiceAccount"))
        if o["metadata"]["namespace"] == "flows"
        and o["metadata"]["name"] in (f"{FULLNAME}-worker", f"{FULLNAME}-flows")
    ]


def test_the_pool_is_tracked_in_its_project(release: Release, tmp_path: Path) -> None:
    state = bootstrap_state(release, tmp_path)
    projects = {pool.name: pool.hamilton_project for pool in state.work_pools}
    assert projects["common"] is projects["team-b"] is None
    assert projects["team-a"] is not None
    assert (projects["team-a"].name, projects["team-a"].users) == ("team-a", ["ada@example.org"])
    assert [each.name for each in state.hamilton_projects()] == ["flows", "team-a"]


def test_pools_can_share_a_namespace() -> None:
    pools = {pool: {"flows": {"namespace": "team"}} for pool in ("small", "large")}
    release = render({"workers": pools})
    binding = in_namespace(release, "RoleBinding", f"{FULLNAME}-worker", "team")
    assert [each["name"] for each in binding["subjects"]] == [
        f"{FULLNAME}-worker-large",
        f"{FULLNAME}-worker-small",
    ]
    assert in_namespace(release, "ServiceAccount", f"{FULLNAME}-flows", "team")


@pytest.mark.parametrize("common", ["", "elsewhere"])
def test_the_namespace_of_other_pools_changes_nothing(common: str) -> None:
    """Whether it is the release's or that of flows.namespace."""
    flows = {"namespace": common} if common else {}
    same = {"flows": {"namespace": common or "flows"}}
    plain = render({"flows": flows, "workers": {"kubernetes": {}}})
    assert render({"flows": flows, "workers": {"kubernetes": same}}).text == plain.text


def test_a_pool_can_stay_with_the_release_when_the_others_do_not() -> None:
    here = {"flows": {"namespace": "flows"}}
    release = render({"flows": {"namespace": "elsewhere"}, "workers": {"here": here, "there": {}}})
    job = release.job("bootstrap")["spec"]["template"]["spec"]["containers"][0]
    assert env(job)["FLOWS_NAMESPACE_HERE"]["fieldRef"]["fieldPath"] == "metadata.namespace"
    assert template(release, "here")["job_configuration"]["namespace"] == "flows"
    assert in_namespace(release, "Role", f"{FULLNAME}-worker", "flows")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"workers": {"a": {"flows": {"serviceAccount": {"annotations": {"x": "y"}}}}, "b": {}}},
            "The flow pods of a and b share the ServiceAccount flows/demo-prefect-hamilton-flows, "
            "but its settings differ: set a different workers.b.flows.serviceAccount.name.",
        ),
        (
            {"workers": {"a": {"hamiltonUi": {"project": "a"}}}, "hamiltonUi": {"enabled": False}},
            "workers.a.hamiltonUi.project needs hamiltonUi.enabled",
        ),
        (
            {"workers": {"a": {"hamiltonUi": {"users": ["ada"]}}}},
            "workers.a.hamiltonUi.users are users of the pool's own project: set",
        ),
        ({"workers": {"a": {"namespace": "a"}}}, "additional properties 'namespace' not allowed"),
        ({"workers": {"a": {"flows": {"namespace": "A_b"}}}}, "workers/a/flows/namespace"),
        ({"workers": {"a": {"networkPolicy": {"egress": []}}}}, "'egress' not allowed"),
    ],
)
def test_a_mistake_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(RenderError) as refused:
        render(changed)
    assert said in " ".join(str(refused.value).split())
