"""Roles, tokens, network policies and the warnings of the notes."""

import re
import subprocess
from pathlib import Path
from typing import Any

import prefect.blocks.notifications  # noqa: F401  # registers its blocks
import pytest
import yaml
from markdown_it import MarkdownIt
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.blocks.webhook import Webhook
from prefect.utilities.dispatch import get_registry_for_type

from charts.schema.values import alerts
from prefect_hamilton.bootstrap import desired_state
from prefect_hamilton.bootstrap.alerts import TYPES, Presets
from tests.chart.charts import CHART, COMPONENT, Object, Release, env, labels, pod_template, render
from tests.chart.test_worker_role import rules


def test_roles_are_minimal(default: Release) -> None:
    assert {role["metadata"]["name"].rsplit("-", 1)[1] for role in default.of("Role")} == {
        "worker",
        "secrets",
    }
    assert rules(default.get("Role", "secrets")) == {("", "secrets", "create")}
    assert not default.of("ClusterRole") + default.of("ClusterRoleBinding")


def test_secrets_are_read_only_to_copy_them() -> None:
    release = render({"flows": {"namespace": "team-flows"}})
    roles = {
        r["metadata"]["namespace"]: r
        for r in release.of("Role")
        if "secrets" in r["metadata"]["name"]
    }
    assert rules(roles["team-flows"]) == {("", "secrets", "create")}
    reading = [rule for rule in roles["flows"]["rules"] if "get" in rule["verbs"]]
    assert len(reading) == 1
    assert set(reading[0]["resourceNames"]) == {
        f"demo-prefect-hamilton-{name}" for name in ("auth", "postgres", "hamilton-ui")
    }


def test_only_pods_that_call_kubernetes_have_a_token(profiles: dict[str, Release]) -> None:
    for release in profiles.values():
        for account in release.of("ServiceAccount"):
            assert account["automountServiceAccountToken"] is False
        with_token = {
            labels(obj)[COMPONENT]
            for obj in release.objects
            if (t := pod_template(obj)) and t["spec"]["automountServiceAccountToken"]
        }
        assert with_token <= {"worker", "secrets"}


def policies(release: Release) -> dict[str, Object]:
    return {
        p["spec"]["podSelector"]["matchLabels"][COMPONENT]: p["spec"]
        for p in release.of("NetworkPolicy")
    }


def peers(rule: Object, key: str) -> set[str]:
    return {peer["podSelector"]["matchLabels"][COMPONENT] for peer in rule.get(key, [])}


def test_every_pod_has_a_policy(profiles: dict[str, Release]) -> None:
    for release in profiles.values():
        covered = {
            frozenset(p["spec"]["podSelector"]["matchLabels"].items())
            for p in release.of("NetworkPolicy")
        }
        for obj in release.objects:
            if (template := pod_template(obj)) and obj["kind"] != "Pod":
                own = template["metadata"]["labels"].items()
                assert any(selector <= own for selector in covered), obj["metadata"]["name"]


def test_only_allowed_pods_reach_the_databases(profiles: dict[str, Release]) -> None:
    found = policies(profiles["high-availability"])
    servers = {"server", "background-services"}
    (valkey,) = found["valkey"]["ingress"]
    assert peers(valkey, "from") == servers
    (postgres,) = found["postgres"]["ingress"]
    assert peers(postgres, "from") == servers | {"hamilton-ui", "hamilton-ui-retention", "flow-run"}
    for component in ("worker", "flow-run", "bootstrap", "secrets", "hamilton-ui-retention"):
        assert "ingress" not in found[component], component
    for component in ("valkey", "postgres"):
        assert "egress" not in found[component], component


def test_only_flow_pods_and_the_bootstrap_reach_the_git_server(
    profiles: dict[str, Release],
) -> None:
    found = policies(profiles["kind"])
    (git,) = found["git-server"]["ingress"]
    assert peers(git, "from") == {"bootstrap", "flow-run"}
    assert "egress" not in found["git-server"]


@pytest.mark.parametrize("name", ["high-availability", "kind"])
def test_the_policies_of_both_ends_agree(name: str, profiles: dict[str, Release]) -> None:
    """Whom a pod may reach lets it in."""
    found = policies(profiles[name])
    for component, spec in found.items():
        for rule in spec.get("egress", []):
            for target in peers(rule, "to"):
                into = found[target]["ingress"]
                assert any("from" not in r or component in peers(r, "from") for r in into), (
                    component,
                    target,
                )


def test_flow_egress_is_open_by_default(default: Release) -> None:
    assert policies(default)["flow-run"]["egress"] == [{}]
    closed = policies(render({"networkPolicy": {"flowsEgress": []}}))["flow-run"]["egress"]
    assert {t for rule in closed for t in peers(rule, "to")} == {
        "server",
        "hamilton-ui",
        "postgres",
    }
    assert {} not in closed


ANY_HTTPS = {"ports": [{"port": 443, "protocol": "TCP"}]}


def notifications(release: Release) -> set[str]:
    """Return the components whose policies open the port of notifications to any address."""
    return {name for name, spec in policies(release).items() if ANY_HTTPS in spec.get("egress", [])}


def test_notifications_leave_from_the_pod_that_sends_them() -> None:
    url = {"from_env": "URL"}
    slack: Object = {"name": "alerts", "type": "slack-webhook", "values": {"url": url}}
    other: Object = {"name": "password", "type": "secret", "values": {"value": url}}
    assert notifications(render({"bootstrap": {"state": {"blocks": [other]}}})) == set()
    values: Object = {"bootstrap": {"state": {"blocks": [other, slack]}}}
    assert notifications(render(values)) == {"server"}
    several = values | {"server": {"replicas": 2}, "valkey": {"enabled": True}}
    assert notifications(render(several)) == {"background-services"}
    values["bootstrap"]["enabled"] = False
    assert notifications(render(values)) == set()


def documented_alerts() -> list[Object]:
    """Return the values of the docs, the first one first."""
    tokens = MarkdownIt().parse((CHART.parent.parent / "docs" / "alerts.md").read_text())
    found = [yaml.safe_load(t.content) for t in tokens if t.type == "fence" and t.info == "yaml"]
    return [each for each in found if "secrets:" not in yaml.safe_dump(each)]


def test_the_alerts_of_the_docs_have_their_secrets_and_their_way_out() -> None:
    first, *others = documented_alerts()
    release = render(first)
    assert notifications(release) == {"server"}
    (container,) = release.job("bootstrap")["spec"]["template"]["spec"]["containers"]
    url = {"name": "slack", "key": "url", "optional": True}
    assert env(container)["ALERTS_TEAM_URL"] == {"secretKeyRef": url}
    assert len(others) == 4
    for each in others:
        render({**first, **each, "alerts": first["alerts"] | each.get("alerts", {})})


def test_a_channel_opens_its_port_for_the_pod_that_sends_and_no_other() -> None:
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "tickets"}}}
    channel = {"type": "webhook", "existingSecret": "tickets", "port": 8080, "to": [peer]}
    values: Object = {"alerts": {"channels": {"tickets": channel}}}
    rule = {"ports": [{"port": 8080, "protocol": "TCP"}], "to": [peer]}
    several = {"server": {"replicas": 2}, "valkey": {"enabled": True}}
    for more, sender in (({}, "server"), (several, "background-services")):
        release = render(values | more)
        found = {name for name, spec in policies(release).items() if rule in spec.get("egress", [])}
        assert found == {sender}
        assert notifications(release) == set()
        (container,) = release.get("Pod", "-test")["spec"]["containers"]
        assert "--alerts" in container["args"]
    (container,) = render().get("Pod", "-test")["spec"]["containers"]
    assert "--alerts" not in container["args"]


@pytest.mark.parametrize("bootstrap", [{}, {"recordName": "mine"}], ids=str)
def test_helm_test_tests_the_channels_of_its_release(bootstrap: Object) -> None:
    channels = {"team": {"type": "slack", "existingSecret": "slack"}}
    release = render({"alerts": {"channels": channels}, "bootstrap": bootstrap})
    (container,) = release.get("Pod", "-test")["spec"]["containers"]
    (job,) = release.job("bootstrap")["spec"]["template"]["spec"]["containers"]
    for name in ("BOOTSTRAP_NAMESPACE", "BOOTSTRAP_RELEASE"):
        assert env(container).get(name) == env(job).get(name)
    assert env(container)["BOOTSTRAP_RELEASE"] == bootstrap.get(
        "recordName", "$(BOOTSTRAP_NAMESPACE)/demo"
    )


def test_the_bootstrap_accepts_the_alerts_of_the_chart(tmp_path: Path) -> None:
    keys = {name: {"type": name, "existingSecret": name} for name in TYPES}
    keys["mattermost"]["values"] = {"hostname": "chat.example.org"}
    keys["sendgrid"]["values"] = {"sender_email": "a@example.org", "to_emails": ["b@example.org"]}
    keys["webhook"] |= {"keys": ["token"], "values": {"headers": {"X": "{{token}}"}}}
    release = render({"alerts": {"channels": keys}})
    (config,) = (o for o in release.of("ConfigMap") if "state.yaml" in o.get("data", {}))
    for name, text in config["data"].items():
        (tmp_path / name).write_text(text)
    state = desired_state.load([tmp_path / "state.yaml"])
    assert {f"alert-{name}" for name in TYPES} <= {block.name for block in state.blocks}
    (container,) = release.job("bootstrap")["spec"]["template"]["spec"]["containers"]
    for block in state.blocks:
        if block.name.startswith("alert-"):
            assert set(env(container)) >= set(desired_state.unset(block.values))


def test_the_chart_has_the_presets_of_the_bootstrap_with_the_same_defaults() -> None:
    chart = alerts.Presets().model_dump()
    assert chart == Presets().model_dump()


def test_the_egress_of_notifications_can_be_named_or_closed() -> None:
    blocks = [{"name": "alerts", "type": "slack-webhook", "values": {"url": {"from_env": "URL"}}}]
    values: Object = {"bootstrap": {"state": {"blocks": blocks}}}
    proxy = {"to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}], "ports": [{"port": 3128}]}
    for egress in ([proxy], []):
        found = policies(render(values | {"networkPolicy": {"notificationsEgress": egress}}))
        assert ANY_HTTPS not in found["server"]["egress"]
        assert (proxy in found["server"]["egress"]) == bool(egress)
        assert proxy not in found["worker"]["egress"]


def test_every_block_that_sends_something_opens_the_egress() -> None:
    senders = [
        block
        for block in (get_registry_for_type(Block) or {}).values()
        if issubclass(block, (NotificationBlock, Webhook))
    ]
    assert len(senders) > 5
    for block in senders:
        blocks = [{"name": "x", "type": block.get_block_type_slug(), "values": {}}]
        release = render({"bootstrap": {"state": {"blocks": blocks}}})
        assert notifications(release) == {"server"}, block


def test_access_to_the_uis_can_be_restricted() -> None:
    ingress = [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}]
    (rule,) = policies(render({"networkPolicy": {"webFrom": ingress}}))["server"]["ingress"]
    assert ingress[0] in rule["from"]
    own = {p["podSelector"]["matchLabels"][COMPONENT] for p in rule["from"] if "podSelector" in p}
    assert own == {"worker", "bootstrap", "test", "flow-run"}


def notes(*settings: str) -> str:
    command = ["helm", "install", "demo", str(CHART), "--dry-run=client", "--namespace", "flows"]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split("NOTES:")[1]


def test_the_notes_show_addresses_and_how_to_log_in() -> None:
    text = notes()
    assert "kubectl -n flows port-forward svc/demo-prefect-hamilton-server 4200:4200" in text
    assert "get secret demo-prefect-hamilton-auth" in text
    assert "helm test demo -n flows" in text
    with_hosts = notes(
        "ingress.enabled=true",
        "ingress.tls=true",
        "server.host=prefect.example.org",
        "hamiltonUi.host=hamilton.example.org",
    )
    assert "https://prefect.example.org" in with_hosts
    assert "https://hamilton.example.org" in with_hosts
    assert "port-forward" not in with_hosts


def test_the_notes_name_namespaces_that_need_secrets() -> None:
    said = "Create the Secrets that your flow pods use in their namespaces, too"
    assert said not in notes("workers.a.limit=1")
    own = [f"workers.{pool}.flows.namespace=team-{pool}" for pool in "ba"]
    assert f"{said}: team-a, team-b\n" in notes(*own)


@pytest.mark.parametrize(
    ("setting", "warning"),
    [
        ("auth.type=none", "anyone who can reach the Prefect API has full access"),
        ("networkPolicy.enabled=false", "every pod of the cluster can reach the databases"),
        ("postgres.enabled=true", "no backups"),
        ("server.sqlite.enabled=true", "a short outage at each upgrade"),
        ("server.url=http://prefect.example.org", "The Prefect UI is served over plain HTTP"),
        ("hamiltonUi.url=http://hamilton.example.org", "The Hamilton UI is served over plain HTTP"),
        (
            "flows.repository=http://git.example.org/flows.git,"
            "flows.gitCredential.existingSecret=git",
            "flows.repository is an http:// address, to which Prefect sends no token",
        ),
        (
            "flows.repositories.a.url=http://git.example.org/flows.git,"
            "flows.repositories.a.gitCredential.existingSecret=git",
            "flows.repositories.a.url is an http:// address, to which Prefect sends no token",
        ),
        ("server.service.type=LoadBalancer", "open to the network"),
        ("gitServer.enabled=true", "is for development"),
    ],
)
def test_the_notes_warn_of_risks(setting: str, warning: str) -> None:
    assert warning in re.sub(r"\s+", " ", notes(setting))


def test_the_notes_of_a_safe_release_have_no_warnings() -> None:
    own = ("postgres.enabled=false", "postgres.host=db", "postgres.existingSecret=db")
    text = notes(*own, "server.url=http://localhost:4200")
    assert "Warnings" not in text


def test_rbac_can_be_managed_externally() -> None:
    release = render({"rbac": {"create": False}})
    assert not release.of("Role") + release.of("RoleBinding")


def test_existing_service_accounts() -> None:
    account: dict[str, Any] = {"serviceAccount": {"create": False, "name": "mine"}}
    release = render(
        {"server": account, "worker": account, "hamiltonUi": account, "flows": account}
    )
    assert [labels(a)[COMPONENT] for a in release.of("ServiceAccount")] == ["secrets"]
    for name in ("server", "worker-kubernetes", "hamilton-ui"):
        spec = release.get("Deployment", name)["spec"]["template"]["spec"]
        assert spec["serviceAccountName"] == "mine"
    assert release.get("RoleBinding", "worker")["subjects"][0]["name"] == "mine"
