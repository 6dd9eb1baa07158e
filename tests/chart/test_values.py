"""values.yaml, its schema and its documentation agree; errors are one sentence."""

import json
import re
from typing import Any

import jsonschema
import pytest
import yaml

from charts.schema import generate
from charts.schema import values as models
from tests.chart.charts import (
    CHART,
    ROOT,
    Release,
    RenderError,
    env,
    pod_template,
    render,
    template_text,
)
from tests.chart.conftest import PROFILES, profile_values

SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def test_the_generated_files_are_current() -> None:
    for path, text in generate.files().items():
        assert path.read_text() == text, f"{path.name}: run make generate"


def test_the_schema_is_closed_everywhere() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for name, part in [("top", SCHEMA), *SCHEMA["$defs"].items()]:
        if "properties" in part:
            assert part["additionalProperties"] is False, name


def test_values_yaml_has_the_defaults_of_the_models() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert models.ChartValues.model_validate(values) == models.ChartValues()


def test_every_value_is_documented() -> None:
    table = (CHART / "README.md").read_text()
    for path, _, text in generate.documented():
        assert text.endswith("."), f"{path} has no sentence"
        assert f"| `{path}` |" in table


@pytest.mark.parametrize(("path", "example"), generate.examples())
def test_an_example_in_values_yaml_renders(path: str, example: Any) -> None:
    """`secretRef` and others name objects that a cluster would have."""
    values = example
    for key in reversed(path.split(".")):
        values = {key: values}
    assert render(values).objects


def test_migration_guide_names_existing_values() -> None:
    known = {path for path, _, _ in generate.documented()}
    known |= {path.rsplit(".", n)[0] for path in known for n in range(1, path.count(".") + 1)}
    shared = {path.split(".")[1] for path in known if path.startswith("global.")}
    components = {path.split(".")[0] for path in known}
    guide = (ROOT / "docs" / "migrate-from-prefect-helm.md").read_text()
    rows = [line.split("|")[2] for line in guide.splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    for row in rows:
        for name in re.findall(r"`([a-z][A-Za-z.]+)(?::(?!//)[^`]*)?`", row):
            component, _, setting = name.partition(".")
            is_pod_setting = (setting or name) in shared and component in components | shared
            assert name in known or is_pod_setting or name in OTHER_WORDS, name


OTHER_WORDS = {"registry", "digest", "restricted", "emptyDir", "kubernetes"}


def leaves(node: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(node, dict) or not node:
        return [path]
    return [leaf for key, value in node.items() for leaf in leaves(value, (*path, key))]


def test_every_value_is_used() -> None:
    """Each is named in a template: whole, or without its start where settings are merged."""
    templates = "".join(p.read_text() for p in (CHART / "templates").rglob("*") if p.is_file())
    for path, _, _ in generate.documented():
        steps = path.split(".")
        endings = [".".join(steps[i:]) for i in range(len(steps))]
        if path.startswith(("bootstrap.state.", "alerts.presets.")):
            continue  # passed on as it is
        assert any(re.search(rf"\.{re.escape(e)}\b", templates) for e in endings), path


PLACEMENT = ("runtimeClassName", "schedulerName", "hostAliases", "dnsPolicy", "dnsConfig")


def test_every_pod_setting_reaches_every_pod(profiles: dict[str, Release]) -> None:
    """What `global` says is in all pods; everything.yaml sets each setting."""
    release = profiles["everything"]
    shared = profile_values("everything")["global"]
    for obj in release.objects:
        if (template := pod_template(obj)) is None or obj["kind"] in ("Pod", "CronJob"):
            continue
        spec, name = template["spec"], obj["metadata"]["name"]
        main = spec["containers"][0]
        for key in ("affinity", "priorityClassName", "tolerations", *PLACEMENT):
            assert spec[key] == shared[key], f"{name}: {key}"
        assert spec["nodeSelector"].items() >= shared["nodeSelector"].items(), name
        assert spec["topologySpreadConstraints"] == shared["topologySpreadConstraints"]
        assert spec["imagePullSecrets"] == [{"name": "pull"}]
        assert spec["securityContext"]["supplementalGroups"] == [4000]
        assert main["securityContext"]["runAsGroup"] == 2000
        assert env(main)["PYTHONWARNINGS"] == "ignore", name
        assert main["envFrom"] == shared["envFrom"], name
        assert shared["volumes"][0] in spec["volumes"], name
        assert shared["volumeMounts"][0] in main["volumeMounts"], name
        assert "extra" in [c["name"] for c in spec["initContainers"]], name
        assert template["metadata"]["labels"].items() >= shared["podLabels"].items()
        assert template["metadata"]["annotations"].items() >= shared["podAnnotations"].items()
        if obj["kind"] != "Job":
            assert "sidecar" in [c["name"] for c in spec["containers"]], name
        assert main["image"].startswith(("registry.example.org/mirror/", "ghcr.io/")), name
        assert main["imagePullPolicy"] == "Always"


def test_every_value_is_in_some_example() -> None:
    """So that what the tests check about the examples is checked for every value."""
    seen = {
        re.sub(r"^workers\..*", "workers", ".".join(p))
        for n in PROFILES
        for p in leaves(profile_values(n))
    }
    for path, _, _ in generate.documented():
        in_example = any(s == path or s.startswith(f"{path}.") for s in seen)
        is_other_knob = any(shared in path for shared in SHARED)
        assert in_example or is_other_knob or path in NOT_IN_AN_EXAMPLE, path


# The same code everywhere; one component's shows it.
SHARED = (".image.", ".storage.", ".service.", ".podDisruptionBudget.", ".autoscaling.")
NOT_IN_AN_EXAMPLE = {
    # Instead of other values; test_company_network.py sets them.
    "global.proxy.existingSecret",
    "global.proxy.port",
    "global.caBundle.secret",
    "valkey.port",
    "server.sqlite.storage.size",
    "server.sqlite.storage.storageClass",
    "server.sqlite.storage.existingClaim",
    "server.sqlite.storage.keep",
    "flows.results.existingClaim",
    "hamiltonUi.storage.size",
    "hamiltonUi.storage.storageClass",
    "hamiltonUi.storage.existingClaim",
    "hamiltonUi.storage.keep",
    "secrets.enabled",
    "bootstrap.enabled",
    "gitServer.resources.requests",
    "gitServer.resources.limits",
    "networkPolicy.enabled",
    "rbac.create",
    "ingress.tlsSecret",
}


def at(path: str, value: Any) -> dict[str, Any]:
    """Return values with one set: at("a.b", 1) is {"a": {"b": 1}}."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


@pytest.mark.parametrize(
    "values",
    [
        at("serverr.enabled", True),
        at("server.enable", True),
        at("server.image.repo", "x"),
        at("server.resources.request", {}),
        at("workers.kubernetes.replica", 2),
        at("workers.kubernetes.flows.imagee", {}),
        at("flows.gitCredential.token", "secret"),
        at("postgres.databases.prefect.password", "secret"),
        at("ingress.hosts", []),
        at("server.replicas", "two"),
        at("server.replicas", 0),
        at("server.service.nodePort", 80),
        at("server.logLevel", "loud"),
        at("auth.type", "oauth"),
        at("server.host", "https://prefect.example.org"),
        at("server.url", "prefect.example.org"),
        at("server.image.digest", "abc"),
        at("server.image.repository", "prefect:3"),
        at("postgres.databases.prefect.key", "a key"),
        at("server.env", {"A-B": "x"}),
        at("server.env", {"A": {"secretRef": {}}}),
        at("server.env", {"A": {"secretKeyRef": {}, "fieldRef": {}}}),
        at("postgres.databases.prefect.user", 'x"; DROP'),
        at("flows.repository", "flows"),
        at("workers", {"a/b": {}}),
    ],
    ids=json.dumps,
)
def test_an_unknown_or_mistyped_value_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RenderError, match=r"schema|values don't meet"):
        template_text(values)


@pytest.mark.parametrize(
    ("path", "value", "wrong"),
    [
        ("global.affinity", {"nodeAfinity": {}}, "/global/affinity"),
        ("server.tolerations", [{"operatorr": "Exists"}], "/server/tolerations/0"),
        ("server.volumes", [{"name": "a", "emptydir": {}}], "/server/volumes/0"),
        ("server.volumeMounts", [{"name": "a"}], "/server/volumeMounts/0"),
        ("server.sidecars", [{"name": "a", "img": "b"}], "/server/sidecars/0"),
        ("worker.securityContext", {"runAsUser": "root"}, "/worker/securityContext/runAsUser"),
        ("workers.gpu.tolerations", [{"kee": "a"}], "/workers/gpu/tolerations/0"),
        ("networkPolicy.webFrom", [{"podSelectr": {}}], "/networkPolicy/webFrom/0"),
        ("networkPolicy.extraEgress.server", [{"too": []}], "/networkPolicy/extraEgress/server/0"),
        ("gateway.parentRefs", [{"names": "a"}], "/gateway/parentRefs/0"),
        ("prometheusRule.rules", [{"alert": "A"}], "/prometheusRule/rules/0"),
    ],
    ids=json.dumps,
)
def test_a_wrong_part_of_a_kubernetes_object_is_named(path: str, value: Any, wrong: str) -> None:
    with pytest.raises(RenderError, match=r"values don't meet|schema") as error:
        template_text(at(path, value))
    assert wrong in str(error.value) or wrong[1:].replace("/", ".") in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "wrong"),
    [
        ("server.env", {"A": {"value": "x"}}, "'/server/env/A'"),
        ("server.env", {"A": ["x"]}, "'/server/env/A'"),
        ("server.resources.limits", {"memory": "1 GB"}, "'/server/resources/limits/memory'"),
        ("server.podDisruptionBudget.minAvailable", "half", "minAvailable'"),
        ("workers.gpu.flows.image", {"tag": 3}, "'/workers/gpu/flows/image/tag'"),
        ("workers.gpu.logLevel", "LOUD", "'/workers/gpu/logLevel'"),
        ("workers.gpu.podDisruptionBudget", [], "'/workers/gpu/podDisruptionBudget'"),
        ("global.imageRegistry", "https://registry.example.org", "'/global/imageRegistry'"),
        ("hamiltonUi.retention.schedule", "daily", "'/hamiltonUi/retention/schedule'"),
        ("networkPolicy.extraEgress", {"hamiltonUi": []}, "'hamiltonUi' not allowed"),
        ("extraObjects", [1], "'/extraObjects/0'"),
        ("worker", None, "missing property 'worker'"),
    ],
    ids=json.dumps,
)
def test_a_wrong_value_is_reported_in_one_line(path: str, value: Any, wrong: str) -> None:
    with pytest.raises(RenderError) as error:
        template_text(at(path, value))
    lines = str(error.value).partition("prefect-hamilton:\n")[2].split("\n\n")[0].splitlines()
    assert len(lines) == 1, lines
    assert wrong in lines[0]


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("nameOverride", "My Name", "a name of lowercase letters, digits and hyphens"),
        ("server.host", "https://prefect.example.org", "a host name in lowercase without scheme"),
        ("server.host", "prefect..org", "a host name in lowercase without scheme"),
        ("server.url", "prefect.example.org", "an http or https URL"),
        ("flows.repository", "example.org/flows", "the URL of a Git repository"),
        ("flows.ref", "", "a branch, a tag or a whole commit SHA"),
        ("server.image.tag", "a:b", "the tag of an image"),
        ("server.image.digest", "3f1", "sha256: and 64 lowercase hexadecimal digits"),
        ("server.image.repository", "Prefect/Server", "the name of an image in lowercase"),
        ("server.resources.limits", {"memory": "1 GB"}, "a quantity of Kubernetes"),
        ("server.resources.limits", {"memory": "1.2.3"}, "a quantity of Kubernetes"),
        ("worker.podDisruptionBudget.minAvailable", "half", "a number or a percentage"),
        ("hamiltonUi.retention.schedule", "daily", "a cron expression of five fields"),
        ("serviceMonitor.interval", "30", "a duration with a unit"),
        ("serviceMonitor.interval", "30s1m", "a duration with a unit"),
        ("hamiltonUi.allowedHosts", ["http://x"], "a host name or address without scheme"),
        ("postgres.databases.prefect.user", "A-B", "a name of lowercase letters, digits and under"),
        ("auth.key", "a b", "a key of a Secret"),
        ("ingress.className", "Nginx!", "a name of lowercase letters, digits, hyphens and dots"),
        ("gateway.parentRefs", [{"name": "a", "kind": "!"}], "the kind of an object"),
    ],
    ids=json.dumps,
)
def test_a_text_in_a_wrong_form_is_reported_in_words(path: str, value: Any, wanted: str) -> None:
    with pytest.raises(RenderError) as error:
        template_text(at(path, value))
    assert f"value must be '{wanted}" in str(error.value)


def test_no_regular_expression_is_reported() -> None:
    """Only as a condition, of which Helm prints nothing, or for names of keys."""

    def patterns(node: Any, key: str = "") -> list[str]:
        if isinstance(node, list):
            return [found for child in node for found in patterns(child)]
        if not isinstance(node, dict):
            return []
        own = [node["pattern"]] if isinstance(node.get("pattern"), str) and key != "if" else []
        return [*own, *(f for name, child in node.items() for f in patterns(child, name))]

    assert patterns(SCHEMA) == []


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({}, {"maxUnavailable": 1}),
        ({"maxUnavailable": 0}, {"maxUnavailable": 0}),
        ({"minAvailable": 0}, {"minAvailable": 0}),
        ({"minAvailable": "50%"}, {"minAvailable": "50%"}),
    ],
    ids=json.dumps,
)
def test_a_disruption_budget_has_the_given_bound(
    budget: dict[str, Any], expected: dict[str, Any]
) -> None:
    values = {"worker": {"replicas": 2, "podDisruptionBudget": budget}}
    spec = render(values).get("PodDisruptionBudget", "worker-kubernetes")["spec"]
    assert {key: spec[key] for key in spec if key != "selector"} == expected


REMOTE = {"server": {"enabled": False}, "hamiltonUi": {"enabled": False}}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"server": {"replicas": 2}}, "valkey.enabled"),
        ({"server": {"replicas": 2, "sqlite": {"enabled": True}}}, "one server replica"),
        ({"api": {"url": "http://x/api"}}, "server.enabled is true"),
        ({"auth": {"type": "apiKey"}}, "Prefect Cloud"),
        ({"auth": {"key": "token"}}, "auth.key is a key of auth.existingSecret"),
        (
            {"worker": {"serviceAccount": {"create": False}}},
            "name another one in worker.serviceAccount.name",
        ),
        (REMOTE, "set api.url"),
        ({**REMOTE, "api": {"url": "http://x/api"}}, "set auth.existingSecret"),
        ({**REMOTE, "worker": {"enabled": False}}, "Nothing is left to install"),
        ({"postgres": {"enabled": False}}, "PostgreSQL is required"),
        ({"postgres": {"host": "db"}}, "set only one of them"),
        ({"postgres": {"enabled": False, "host": "db"}}, "set postgres.existingSecret"),
        ({"postgres": {"tls": {"enabled": True}}}, "the bundled one has no certificate"),
        ({"postgres": {"image": {"tag": ""}}}, "none of postgres: set the tag or the digest"),
        (
            {"monitoring": {"valkeyExporter": {"enabled": True, "image": {"tag": ""}}}},
            "monitoring.valkeyExporter.image.tag is empty",
        ),
        ({"hamiltonUi": {"replicas": 2}}, "hamiltonUi.s3.bucket"),
        ({"secrets": {"enabled": False}}, "existingSecret"),
        ({"ingress": {"enabled": True}}, "needs server.host"),
        ({"ingress": {"enabled": True}, "server": {"host": "a"}}, "needs hamiltonUi.host"),
        (
            {"ingress": {"enabled": True}, "server": {"host": "a"}, "hamiltonUi": {"host": "a"}},
            "must differ",
        ),
        (
            {"gateway": {"enabled": True}, "server": {"host": "a"}, "hamiltonUi": {"host": "b"}},
            "gateway.parentRefs",
        ),
        (
            {"serviceMonitor": {"enabled": True}},
            "needs metrics.enabled, server.metrics, hamiltonUi.metrics or an exporter",
        ),
        (
            {"monitoring": {"valkeyExporter": {"enabled": True}}},
            "valkey.enabled is false",
        ),
        (
            {
                "monitoring": {"postgresExporter": {"enabled": True}},
                "postgres": {"enabled": False, "host": "db", "existingSecret": "db"},
            },
            "run an exporter beside yours",
        ),
        ({"metrics": {"enabled": True}, "server": {"enabled": False}}, "metrics.enabled needs"),
        (
            {"flows": {"repository": "https://x/y.git"}, "bootstrap": {"enabled": False}},
            "set bootstrap.enabled",
        ),
        ({"flows": {"repository": "git@x:y.git"}}, "SSH address"),
        (
            {"flows": {"repository": "https://x/y.git"}, "gitServer": {"enabled": True}},
            "set only one of them",
        ),
        (
            {"flows": {"gitCredential": {"existingSecret": "x"}}, "gitServer": {"enabled": True}},
            "requires no credential",
        ),
        ({"gitServer": {"enabled": True}, "bootstrap": {"enabled": False}}, "bootstrap.enabled"),
        ({"flows": {"repository": "https://token@x/y.git"}}, "contains a credential"),
        (
            {
                "bootstrap": {"enabled": False},
                "alerts": {"channels": {"a": {"type": "slack", "existingSecret": "slack"}}},
            },
            "alerts.channels are registered by the bootstrap",
        ),
        (
            {"bootstrap": {"enabled": False, "schedule": "0 * * * *"}},
            "bootstrap.schedule is the schedule of the bootstrap",
        ),
        ({"server": {"service": {"nodePort": 30420}}}, "set server.service.type to NodePort"),
        ({"workers": {"a b": {}}}, "schema"),
        ({"workers": {"a": {"autoscaling": {"enabled": True, "minReplicas": 9}}}}, "maxReplicas"),
        (
            {"server": {"resources": {"requests": {"memory": "2Gi"}}}},
            "server: the request of memory (2Gi) is above the limit (1Gi): "
            "raise server.resources.limits.memory.",
        ),
        (
            {"postgres": {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}}},
            "raise postgres.resources.limits.cpu",
        ),
        (
            {"monitoring": {"postgresExporter": {"resources": {"requests": {"memory": "1G"}}}}},
            "raise monitoring.postgresExporter.resources.limits.memory",
        ),
        (
            {"flows": {"resources": {"requests": {"memory": "513Mi"}}}},
            "The flow pods of kubernetes: the request of memory (513Mi) is above the limit (512Mi)",
        ),
        (
            {"workers": {"a": {"flows": {"resources": {"requests": {"memory": "1Gi"}}}}}},
            "The flow pods of a: the request of memory (1Gi)",
        ),
        (
            {"workers": {"a": {"resources": {"requests": {"memory": "1Gi"}}}}},
            "The worker of a: the request of memory (1Gi)",
        ),
        (
            {"backgroundServices": {"replicas": 2}},
            "backgroundServices.replicas is 2, but they run in the server's pod",
        ),
        ({"dashboards": {"enabled": True}}, "dashboards.enabled needs metrics.enabled"),
        (
            {"worker": {"podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}}},
            "minAvailable and maxUnavailable are both set",
        ),
        (
            {"alerts": {"presets": {"failed": {"enabled": True, "channels": ["nosuch"]}}}},
            "alerts.presets.failed.channels: there is no channel nosuch",
        ),
        (
            {
                "alerts": {
                    "channels": {
                        "ops": {"type": "webhook", "existingSecret": "a", "keys": ["prod_url"]},
                        "ops-prod": {"type": "slack", "existingSecret": "b"},
                    }
                }
            },
            "alerts.channels: ops (prod_url) and ops-prod (url) have the same environment "
            "variable, ALERTS_OPS_PROD_URL: rename one of the channels or keys.",
        ),
        (
            {
                "alerts": {
                    "channels": {
                        "ops": {"type": "webhook", "existingSecret": "a", "keys": ["a-b", "a_b"]}
                    }
                }
            },
            "alerts.channels: ops (a-b) and ops (a_b) have the same environment variable, ",
        ),
        (
            {"alerts": {"presets": {"pool": {"enabled": True, "pools": ["nosuch"]}}}},
            "alerts.presets.pool.pools: the release has no work pool nosuch",
        ),
    ],
    ids=json.dumps,
)
def test_a_user_error_is_reported_in_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RenderError) as error:
        template_text(values)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("request_", "limit"),
    [("1Gi", "1Gi"), ("1024Mi", "1Gi"), ("900m", 1), (1, "1000m"), ("1G", "1Gi")],
)
def test_a_request_up_to_the_limit_is_accepted(request_: Any, limit: Any) -> None:
    resources = {"requests": {"memory": request_}, "limits": {"memory": limit}}
    assert render({"server": {"resources": resources}}).objects


def test_a_parameter_of_postgres_can_be_a_number() -> None:
    release = render({"postgres": {"parameters": {"max_connections": 200, "jit": False}}})
    arguments = pod_template(release.get("StatefulSet", "postgres"))["spec"]["containers"][0][
        "args"
    ]
    assert {"max_connections=200", "jit=false"} <= set(arguments)


def test_all_errors_are_reported_at_once() -> None:
    with pytest.raises(RenderError) as error:
        template_text({"server": {"replicas": 2}, "ingress": {"enabled": True}})
    for sentence in ("valkey.enabled", "needs server.host", "needs hamiltonUi.host"):
        assert sentence in str(error.value)


def test_env_is_merged_by_name_and_null_removes() -> None:
    release = render(
        {
            "global": {"env": {"SHARED": "1", "PREFECT_HOME": "/other"}},
            "server": {"env": {"SHARED": 2, "FLAG": True, "PREFECT_SERVER_LOGGING_LEVEL": None}},
        }
    )
    found = env(pod_template(release.get("Deployment", "server"))["spec"]["containers"][0])
    assert (found["SHARED"], found["FLAG"], found["PREFECT_HOME"]) == ("2", "true", "/other")
    worker = env(
        pod_template(release.get("Deployment", "worker-kubernetes"))["spec"]["containers"][0]
    )
    assert worker["SHARED"] == "1"
    assert "PREFECT_SERVER_LOGGING_LEVEL" not in found


@pytest.mark.parametrize("profile", PROFILES)
def test_null_is_refused_or_means_the_default(profile: str) -> None:
    """A key with nothing under it takes the default away; no template may stumble over that."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    nullable = _nullable(defaults, defaults)
    assert nullable["global"] is not None and "labels" in nullable["global"]
    assert template_text(_merged(nullable, profile_values(profile)))


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        ({"worker": None}, "worker"),
        ({"worker": {"enabled": None}}, "enabled"),
        ({"server": {"autoscaling": None}}, "autoscaling"),
        ({"flows": {"deployments": None}}, "deployments"),
        ({"postgres": {"image": {"tag": None}}}, "tag"),
    ],
)
def test_null_for_a_section_or_switch_is_refused(values: dict[str, Any], missing: str) -> None:
    with pytest.raises(
        RenderError, match=rf"missing property '{missing}'|{missing} is required"
    ) as error:
        render(values)
    assert "template" not in str(error.value)


def _nullable(section: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The keys of a section of `values` that the schema lets be null, each with null."""
    found: dict[str, Any] = {}
    for key, default in list(section.items()):
        del section[key]
        if jsonschema.Draft202012Validator(SCHEMA).is_valid(values):
            found[key] = None
        section[key] = default
        if key not in found and isinstance(default, dict):
            found[key] = _nullable(default, values)
    return found


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(below[key], above[key])
        for key in below.keys() & above.keys()
        if isinstance(below[key], dict) and isinstance(above[key], dict)
    }
    return {**below, **above, **both}


def test_a_large_number_is_not_abbreviated() -> None:
    """Helm makes a float of a number, which a template would print as 2.592e+06."""
    large = 2592000
    release = render(
        {
            "global": {"env": {"LARGE": large, "HALF": 0.5}},
            "server": {"terminationGracePeriodSeconds": large},
            "flows": {"activeDeadlineSeconds": large, "terminationGracePeriodSeconds": large},
            "workers": {"kubernetes": {"limit": large, "concurrencyLimit": large}},
        }
    )
    assert "e+0" not in release.text
    found = env(pod_template(release.get("Deployment", "server"))["spec"]["containers"][0])
    assert (found["LARGE"], found["HALF"]) == ("2592000", "0.5")
    # 90 days in seconds.
    assert found["PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD"] == "7776000"


def test_a_flow_runs_with_an_arbitrary_user_id() -> None:
    """A platform that gives each namespace its own user ids refuses fixed ones."""
    nothing = {"runAsUser": None, "runAsGroup": None, "fsGroup": None}
    release = render({"global": {"podSecurityContext": nothing}})
    for obj in release.objects:
        if template := pod_template(obj):
            assert not set(nothing) & set(template["spec"]["securityContext"])
            assert template["spec"]["securityContext"]["runAsNonRoot"] is True
