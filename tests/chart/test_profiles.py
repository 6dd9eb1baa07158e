"""What the chart renders for the default values and for each example in examples/."""

import json
import os
import re
import shutil
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from prefect_redis.messaging import RedisMessagingConsumerSettings

from prefect_hamilton.server import notifications, outages
from prefect_hamilton.worker import work_pool
from tests.chart.charts import (
    CHART,
    COMPONENT,
    VERSIONS,
    Object,
    Release,
    check,
    containers,
    env,
    labels,
    pod_template,
    render,
    template_text,
)
from tests.chart.conftest import PROFILES, profile_values


@pytest.mark.parametrize("name", PROFILES)
def test_each_example_is_explained_and_listed(name: str) -> None:
    assert (CHART / "examples" / name / "README.md").read_text().startswith("# ")
    assert f"(examples/{name}/)" in (CHART / "README.md").read_text()


def test_the_default_values_are_a_complete_installation(default: Release) -> None:
    workloads = {
        name.removeprefix("demo-prefect-hamilton-")
        for kind, name in default.names()
        if kind in ("Deployment", "StatefulSet")
    }
    assert workloads == {"server", "worker-kubernetes", "ui", "postgres"}
    jobs = {labels(job)[COMPONENT] for job in default.of("Job")}
    assert jobs == {"bootstrap", "secrets"}


def bootstrap_pod(release: Release, kind: str) -> dict[str, Any]:
    (owner,) = [job for job in release.of(kind) if labels(job)[COMPONENT] == "bootstrap"]
    template = pod_template(owner)
    assert template is not None
    return template


def test_the_bootstrap_deletes_what_its_own_release_created(default: Release) -> None:
    """Two releases on one server must not delete the objects of each other."""
    (container,) = containers(bootstrap_pod(default, "Job"))
    assert "--no-prune" not in container["args"]
    assert env(container)["BOOTSTRAP_RELEASE"] == "$(BOOTSTRAP_NAMESPACE)/demo"
    source = env(container)["BOOTSTRAP_NAMESPACE"]
    assert source["fieldRef"]["fieldPath"] == "metadata.namespace"


def test_a_limit_of_null_is_no_limit() -> None:
    """A null in a values file takes back a value; 0 would start no flow run."""
    queues = {"urgent": {"concurrencyLimit": None}, "none": {"concurrencyLimit": 0}}
    release = render({"workers": {"kubernetes": {"concurrencyLimit": None, "queues": queues}}})
    state = yaml.safe_load(release.get("ConfigMap", "-bootstrap")["data"]["state.yaml"])
    (pool,) = state["work_pools"]
    assert "concurrency_limit" not in pool
    assert pool["queues"] == [{"name": "none", "concurrency_limit": 0}, {"name": "urgent"}]


def test_the_bootstrap_runs_again_on_a_schedule(profiles: dict[str, Release]) -> None:
    release = profiles["everything"]
    assert bootstrap_pod(release, "CronJob") == bootstrap_pod(release, "Job")
    pod = bootstrap_pod(release, "Job")
    (container,) = [c for c in containers(pod) if c["name"] == "bootstrap"]
    assert "--no-prune" in container["args"]
    assert env(container)["BOOTSTRAP_RELEASE"] == "cluster-a/everything"


def test_the_default_fits_a_small_node(default: Release) -> None:
    """2 CPUs and 4 GiB, of which a kind control plane takes 950m and about 300 MiB."""

    def requests(kinds: tuple[str, ...], resource: str) -> float:
        return sum(
            quantity(container["resources"]["requests"][resource])
            for kind in kinds
            for obj in default.of(kind)
            for container in pod_template(obj)["spec"]["containers"]
        )

    flow = yaml.safe_load(default.get("ConfigMap", "bootstrap")["data"][POOL_FILE])
    variables = flow["variables"]["properties"]
    kinds = ("Deployment", "StatefulSet")
    largest = 0.1  # a second server pod during a rolling update
    cpu = requests(kinds, "cpu") + largest + 20 * quantity(variables["cpu_request"]["default"])
    assert requests((*kinds, "Job"), "cpu") < 0.4
    assert cpu + 0.95 <= 2
    memory = requests(kinds, "memory") + 20 * quantity(variables["memory_request"]["default"])
    assert memory + 300 * 2**20 <= 4 * 2**30


POOL_FILE = "base-job-template-kubernetes.yaml"
UNITS = {"m": 0.001, "Mi": 2**20, "Gi": 2**30, "": 1}


def quantity(text: str | float) -> float:
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text))
    assert match
    return float(match[1]) * UNITS[match[2]]


def test_minimal_has_no_database_pod(profiles: dict[str, Release]) -> None:
    release = profiles["minimal"]
    assert not release.of("StatefulSet")
    server = release.get("Deployment", "server")
    assert server["spec"]["strategy"] == {"type": "Recreate"}
    assert env(pod_template(server)["spec"]["containers"][0])["PREFECT_SERVER_DATABASE_NAME"] == (
        "/data/prefect.db"
    )
    (container,) = pod_template(server)["spec"]["containers"]
    assert "--migrate" not in container["args"], "Prefect migrates SQLite itself"


def test_a_server_migrates_its_database_itself(profiles: dict[str, Release]) -> None:
    """Without an init container, which would import all that the server imports."""
    for name in ("kind", "high-availability", "external"):
        server = profiles[name].get("Deployment", "-hamilton-server")
        spec = pod_template(server)["spec"]
        assert "initContainers" not in spec
        (container,) = spec["containers"]
        assert "--migrate" in container["args"]
        startup = container["startupProbe"]
        longest = startup["periodSeconds"] * startup["failureThreshold"]
        assert longest >= 24 * 3600, "the probe would interrupt a long migration"


def test_a_worker_waits_for_its_pool_itself(profiles: dict[str, Release]) -> None:
    """Without an init container, after whose end the worker would begin to import Prefect."""
    spec = pod_template(profiles["kind"].get("Deployment", "worker-kubernetes"))["spec"]
    assert "initContainers" not in spec
    (container,) = spec["containers"]
    assert "--no-create-pool-if-not-found" in container["args"]
    startup = container["startupProbe"]
    longest = startup["periodSeconds"] * startup["failureThreshold"]
    assert longest > work_pool.WAIT_SECONDS, "the probe would restart a worker that waits"


def test_pods_wait_for_the_secrets_that_the_release_creates(profiles: dict[str, Release]) -> None:
    """The kubelet looks for that of a variable again after 10 s, for that of a volume sooner."""
    name = "demo-prefect-hamilton"
    kind = profiles["kind"]
    worker = pod_template(kind.get("Deployment", "worker-kubernetes"))["spec"]
    assert awaited(worker) == {f"{name}-auth"}
    bootstrap = kind.job("bootstrap")["spec"]["template"]["spec"]
    assert awaited(bootstrap) == {f"{name}-auth", f"{name}-hamilton-ui", f"{name}-postgres"}


def test_pods_do_not_wait_for_secrets_of_the_user(profiles: dict[str, Release]) -> None:
    """The kubelet would look for the Secret of a volume less and less often."""
    release = profiles["external"]
    for workload in (release.get("Deployment", "worker-kubernetes"), release.job("bootstrap")):
        spec = workload["spec"]["template"]["spec"]
        assert "awaited-secrets" not in [volume["name"] for volume in spec["volumes"]]


def awaited(spec: Object) -> set[str]:
    """The Secrets in the volume that delays a pod, which its container mounts."""
    (container,) = spec["containers"]
    assert "awaited-secrets" in [mount["name"] for mount in container["volumeMounts"]]
    (volume,) = [each for each in spec["volumes"] if each["name"] == "awaited-secrets"]
    return {source["secret"]["name"] for source in volume["projected"]["sources"]}


def test_several_servers_share_everything(profiles: dict[str, Release]) -> None:
    release = profiles["high-availability"]
    api = pod_template(release.get("Deployment", "server"))["spec"]["containers"][0]
    services = pod_template(release.get("Deployment", "background-services"))["spec"]["containers"]
    assert "--no-services" in api["args"]
    assert services[0]["args"][-1] == "prefect_hamilton.server.background_services"
    shared = {
        "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
        "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
        "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_hamilton.server.lease_storage",
        "PREFECT_SERVER_WORKER_CHANNEL_CLEANUP_QUEUE_STORAGE": "prefect_redis.cleanup_queue",
        "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    }
    url = {"secretKeyRef": {"name": "demo-prefect-hamilton-valkey", "key": "url"}}
    for container in (api, services[0]):
        found = env(container)
        assert found.items() >= shared.items()
        assert found["PREFECT_SERVER_DOCKET_URL"] == url
        assert found["PREFECT_REDIS_MESSAGING_URL"] == url
    budgets = {
        o["metadata"]["name"].split("hamilton-", 1)[1] for o in release.of("PodDisruptionBudget")
    }
    assert budgets == {"server", "background-services", "worker-kubernetes", "ui"}
    for deployment in release.of("Deployment"):
        assert pod_template(deployment)["spec"]["topologySpreadConstraints"]


def test_a_message_is_repeated_through_an_outage_and_not_while_its_receiver_may_answer(
    profiles: dict[str, Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = profiles["high-availability"].get("Deployment", "background-services")
    (container,) = pod_template(services)["spec"]["containers"]
    for name in ("MIN_IDLE_TIME", "MAX_RETRIES"):
        name = f"PREFECT_REDIS_MESSAGING_CONSUMER_{name}"
        monkeypatch.setenv(name, env(container)[name])
    settings = RedisMessagingConsumerSettings()
    assert isinstance(settings.min_idle_time, timedelta)
    assert settings.min_idle_time > timedelta(seconds=notifications.ANSWER_SECONDS)
    # As a server with a broker of its own waits.
    outage = settings.min_idle_time * settings.max_retries
    assert outage >= timedelta(seconds=outages.PATIENCE_SECONDS)


def test_a_replaced_server_leaves_its_service_first(
    default: Release, profiles: dict[str, Release]
) -> None:
    """Where its pod is deleted before there is another one, waiting would only cost time."""
    sleep = {"preStop": {"sleep": {"seconds": 5}}}
    replicated = profiles["high-availability"]
    for release, component, expected in (
        (default, "server", sleep),
        (default, "hamilton-ui", None),
        (profiles["minimal"], "server", None),
        (replicated, "server", sleep),
        (replicated, "hamilton-ui", sleep),
        (replicated, "worker-kubernetes", None),
    ):
        (container,) = pod_template(release.get("Deployment", component))["spec"]["containers"]
        assert container.get("lifecycle") == expected, component
    # The grace period must leave time after the wait.
    release = render({"server": {"terminationGracePeriodSeconds": 5}})
    (container,) = pod_template(release.get("Deployment", "server"))["spec"]["containers"]
    assert "lifecycle" not in container


def test_a_worker_only_release_has_no_server(profiles: dict[str, Release]) -> None:
    release = profiles["worker-only"]
    assert [labels(o)[COMPONENT] for o in release.of("Deployment")] == ["worker"]
    assert not release.of("StatefulSet") + release.of("Service") + release.of("Secret")
    worker = env(pod_template(release.of("Deployment")[0])["spec"]["containers"][0])
    assert worker["PREFECT_API_URL"] == "https://api.prefect.cloud/api/accounts/1/workspaces/2"
    assert worker["PREFECT_API_KEY"] == {
        "secretKeyRef": {"name": "prefect-cloud", "key": "api-key"}
    }
    assert worker["PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_KEY_SECRET_NAME"] == "prefect-cloud"
    assert "PREFECT_API_AUTH_STRING" not in worker


def test_existing_secrets_are_not_created(profiles: dict[str, Release]) -> None:
    release = profiles["external"]
    assert not release.of("StatefulSet")
    assert {labels(job)[COMPONENT] for job in release.of("Job")} == {"bootstrap"}
    referenced = set(re.findall(r"name: (\S+)\n", yaml.safe_dump(secret_references(release))))
    assert referenced == {"prefect-auth", "valkey", "databases", "hamilton", "warehouse"}
    server = env(pod_template(release.get("Deployment", "server"))["spec"]["containers"][0])
    assert server["PREFECT_SERVER_DATABASE_HOST"] == "db.example.org"
    assert server["PREFECT_SERVER_DATABASE_PORT"] == "6432"
    assert server["PREFECT_SERVER_DATABASE_USER"] == "prefect_app"
    assert server["PREFECT_SERVER_DATABASE_PASSWORD"] == {
        "secretKeyRef": {"name": "databases", "key": "prefect"}
    }
    assert server["PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_TLS_ENABLED"] == "true"
    hamilton = env(pod_template(release.get("Deployment", "hamilton-ui"))["spec"]["containers"][0])
    assert (hamilton["DB_NAME"], hamilton["PGSSLMODE"]) == ("hamilton_prod", "verify-full")


def secret_references(release: Release) -> list[Any]:
    return [
        source
        for obj in release.objects
        if (template := pod_template(obj))
        for container in containers(template)
        for source in env(container).values()
        if isinstance(source, dict) and "secretKeyRef" in source
    ]


@pytest.mark.parametrize("name", PROFILES)
def test_two_renders_are_byte_identical(name: str) -> None:
    values = profile_values(name)
    assert template_text(values) == template_text(values)


def test_helm_3_and_helm_4_render_the_same() -> None:
    helm3 = os.environ.get("HELM3") or shutil.which("helm3")
    if not helm3:
        pytest.skip("no Helm 3: set HELM3 to its path, or install it as helm3")

    def documents(values: dict[str, Any], program: str) -> list[str]:
        # Without a cluster, each Helm renders for another version of Kubernetes.
        version = ("--kube-version", f"{VERSIONS[-1]}.0")
        text = template_text(values, options=version, program=program)
        # Where a template makes several objects, Helm 4 ends each with an empty line.
        return [document.strip() for document in re.split(r"^---$", text, flags=re.MULTILINE)]

    for values in ({}, *map(profile_values, PROFILES)):
        assert documents(values, helm3) == documents(values, "helm")


@pytest.mark.parametrize("name", PROFILES)
def test_the_output_is_readable(name: str, profiles: dict[str, Release]) -> None:
    text = profiles[name].text
    assert not re.search(r"[ \t]+$", text, re.MULTILINE), "blanks at the end of a line"
    # Python scripts have two empty lines between functions; nothing has three.
    assert "\n\n\n\n" not in text
    assert "<no value>" not in text
    assert "null" not in re.sub(r'type: "null"|hamilton: null|is not None|None', "", text)


@pytest.mark.parametrize("name", PROFILES)
def test_every_container_has_requests_limits_and_every_server_probes(
    name: str, profiles: dict[str, Release]
) -> None:
    for obj in profiles[name].objects:
        if (template := pod_template(obj)) is None:
            continue
        for container in containers(template):
            if container["name"] in ("extra", "sidecar"):
                continue
            assert container["resources"]["requests"], container["name"]
            assert container["resources"]["limits"], container["name"]
        if obj["kind"] in ("Deployment", "StatefulSet"):
            assert "livenessProbe" in template["spec"]["containers"][0], obj["metadata"]["name"]


@pytest.mark.parametrize("name", PROFILES)
def test_no_secret_is_in_plain_text(name: str, profiles: dict[str, Release]) -> None:
    """No Secret is rendered; what is called a password, key or token is a reference."""
    release = profiles[name]
    assert not release.of("Secret")
    secret = re.compile(r"(PASSWORD|AUTH_STRING|API_KEY|SECRET_KEY|ACCESS_KEY|_TOKEN)$")
    for obj in release.objects:
        for container in containers(template) if (template := pod_template(obj)) else ():
            for variable, value in env(container).items():
                if not secret.search(variable) or variable.startswith("PREFECT_INTEGRATIONS_"):
                    continue
                is_block = isinstance(value, str) and value.startswith("{{ prefect.blocks.")
                assert is_block or "secretKeyRef" in value, variable


def test_two_releases_do_not_collide(default: Release) -> None:
    other = render(name="other")
    assert not default.names() & other.names()
    for mine in default.of("Service"):
        for obj in other.objects:
            if template := pod_template(obj):
                selected = (
                    mine["spec"]["selector"].items() <= template["metadata"]["labels"].items()
                )
                assert not selected, obj["metadata"]["name"]


def test_selectors_match_their_pods_and_no_others(profiles: dict[str, Release]) -> None:
    for release in profiles.values():
        pods = [
            (o["metadata"]["name"], t.get("metadata", {}).get("labels", {}))
            for o in release.objects
            if (t := pod_template(o)) and o["kind"] in ("Deployment", "StatefulSet")
        ]
        for obj in [*release.of("Deployment"), *release.of("StatefulSet")]:
            selector = obj["spec"]["selector"]["matchLabels"].items()
            assert [n for n, own in pods if selector <= own.items()] == [obj["metadata"]["name"]]


def test_json_logs_reach_every_program(default: Release, profiles: dict[str, Release]) -> None:
    variable = "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER"
    release = render({"gitServer": {"enabled": True}, "logs": {"format": "json"}})
    programs = [
        (template["metadata"]["labels"][COMPONENT], container)
        for obj in (*profiles["everything"].objects, *release.objects)
        if (template := pod_template(obj)) is not None
        for container in containers(template)
        if "python" in json.dumps(container.get("args", []))
    ]
    assert {component for component, _ in programs} == {
        *("background-services", "bootstrap", "git-server", "metrics", "secrets", "server"),
        *("test", "worker"),
    }
    for component, container in programs:
        assert variable in env(container), (component, container["name"])
    pods = json.dumps(profiles["everything"].get("ConfigMap", "-bootstrap"))
    assert variable in pods
    assert "PREFECT_LOGGING_HANDLERS_DEBUG_FORMATTER" in pods
    assert variable not in default.text


def test_alerts_name_what_the_release_renders(profiles: dict[str, Release]) -> None:
    release = profiles["everything"]
    groups = release.get("PrometheusRule", "orchestra")["spec"]["groups"]
    rules = {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}
    assert groups[-1]["name"] == "orchestra"
    assert groups[-1]["rules"] == [{"alert": "Mine", "expr": "vector(1) > 2"}]
    metrics = release.get("Service", "orchestra-metrics")["metadata"]["name"]
    assert f'job="{metrics}"' in rules["PrefectRunsLate"]
    # A ServiceMonitor's job is the name of its Service.
    assert (
        f'job="{release.get("Service", "server")["metadata"]["name"]}"'
        in (rules["PrefectServerDown"])
    )
    (deployments,) = re.findall(r'deployment=~"(.+?)"', rules["PrefectComponentUnavailable"])
    (jobs,) = re.findall(r'job_name=~"(.+?)"', rules["PrefectJobFailed"])
    cron_jobs = re.findall(r'cronjob="(.+?)"', rules["PrefectRetentionFailing"])
    assert set(cron_jobs) == {release.get("CronJob", "-retention")["metadata"]["name"]}
    for kind, pattern in (("Deployment", deployments), ("Job", jobs)):
        for obj in release.of(kind):
            assert re.fullmatch(pattern, obj["metadata"]["name"])


def test_an_upgrade_of_the_chart_alone_rolls_no_pod(default: Release) -> None:
    """What follows the chart's version stands nowhere in a pod template."""
    for obj in default.objects:
        if (template := pod_template(obj)) and obj["kind"] != "Pod":
            assert "helm.sh/chart" not in template["metadata"]["labels"]
            assert "app.kubernetes.io/version" not in template["metadata"]["labels"]


def test_a_jobs_name_follows_its_content() -> None:
    def names(values: dict[str, Any]) -> dict[str, str]:
        return {labels(j)[COMPONENT]: j["metadata"]["name"] for j in render(values).of("Job")}

    before = names({})
    after = names({"flows": {"resources": {"requests": {"cpu": "30m"}}}})
    assert after["bootstrap"] != before["bootstrap"]
    assert after["secrets"] == before["secrets"]
    again = names({"rolloutToken": "again"})
    assert again["bootstrap"] != before["bootstrap"]
    assert again["secrets"] != before["secrets"]


def test_the_check_finds_differences(default: Release) -> None:
    """Break an object in several ways: each is noticed."""
    deployment = default.get("Deployment", "server")

    def broken(**spec: Any) -> dict[str, Any]:
        template = {**deployment["spec"]["template"]}
        template["spec"] = {**template["spec"], **spec}
        return {**deployment, "spec": {**deployment["spec"], "template": template}}

    check(broken())
    for spec in (
        {"nodeSelectors": {"a": "b"}},
        {"hostNetwork": True},
        {"securityContext": {"runAsNonRoot": False}},
        {"tolerations": []},
        {"terminationGracePeriodSeconds": "soon"},
        {"containers": [{"name": "x"}]},
    ):
        with pytest.raises(AssertionError):
            check(broken(**spec))


def test_the_chart_has_no_hooks_except_tests_and_no_lookups() -> None:
    sources = {p: p.read_text() for p in (CHART / "templates").rglob("*") if p.is_file()}
    for path, text in sources.items():
        code = re.sub(r"\{\{/\*.*?\*/\}\}", "", text, flags=re.DOTALL)
        assert not re.search(r"\b(lookup|rand\w+|now|genCA|gen\w+Cert)\b", code), path
        assert ".Capabilities" not in code
        assert not re.search(r"\.Release\.(IsInstall|IsUpgrade|Revision)", code), path
        assert "helm.sh/hook" not in code or path.parent.name == "tests", path


def test_prometheus_reaches_the_exporter_and_the_exporter_the_server(
    profiles: dict[str, Release],
) -> None:
    release = profiles["everything"]
    deployment = release.get("Deployment", "-metrics")["spec"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}  # two would count twice
    (rule,) = release.get("NetworkPolicy", "-metrics")["spec"]["ingress"]
    assert rule["from"] == profile_values("everything")["networkPolicy"]["metricsFrom"]
    (server,) = release.get("NetworkPolicy", "-server")["spec"]["ingress"]
    peers = [peer.get("podSelector", {}).get("matchLabels", {}) for peer in server["from"]]
    assert "metrics" in {peer.get(COMPONENT) for peer in peers}
    service = release.get("Service", "orchestra-metrics")
    monitor = release.get("ServiceMonitor", "-metrics")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= labels(service).items()
    # The series of a new pod continue those of the one before.
    assert monitor["endpoints"][0]["relabelings"] == [
        {"targetLabel": "instance", "replacement": service["metadata"]["name"]},
        {"action": "labeldrop", "regex": "pod"},
    ]


def test_prometheus_reaches_the_exporters_beside_the_databases(
    profiles: dict[str, Release],
) -> None:
    release = profiles["everything"]
    peers = profile_values("everything")["networkPolicy"]["metricsFrom"]
    for component, port in (("postgres", 9187), ("valkey", 9121)):
        pod = release.get("StatefulSet", f"-{component}")["spec"]["template"]["spec"]
        (exporter,) = [each for each in pod["containers"] if each["name"] == "exporter"]
        assert pod["containers"][0]["name"] == component
        assert exporter["ports"] == [{"name": "metrics", "containerPort": port}]
        assert exporter["securityContext"]["readOnlyRootFilesystem"]
        secrets = [each["valueFrom"] for each in exporter["env"] if "valueFrom" in each]
        main = pod["containers"][0]["env"]
        assert secrets[0] in [each.get("valueFrom") for each in main], "a password of the pod"
        service = release.get("Service", f"-{component}")
        assert {"name": "metrics", "port": port, "targetPort": "metrics"} in service["spec"][
            "ports"
        ]
        monitor = release.get("ServiceMonitor", f"-{component}")
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels(service).items()
        assert monitor["spec"]["endpoints"][0]["port"] == "metrics"
        assert labels(monitor)["release"] == "prometheus"
        rules = release.get("NetworkPolicy", f"-{component}")["spec"]["ingress"]
        assert {"from": peers, "ports": [{"port": port, "protocol": "TCP"}]} in rules


def test_queries_of_the_postgres_exporter_end_before_prometheus_gives_up(
    profiles: dict[str, Release],
) -> None:
    pod = profiles["everything"].get("StatefulSet", "-postgres")["spec"]["template"]["spec"]
    (exporter,) = [each for each in pod["containers"] if each["name"] == "exporter"]
    settings = parse_qs(urlsplit(f"//{env(exporter)['DATA_SOURCE_URI']}").query)
    (milliseconds,) = settings["statement_timeout"]
    assert 0 < int(milliseconds) < 10_000


@pytest.mark.parametrize(
    ("component", "variable"),
    [
        ("worker", "PREFECT_HAMILTON_WORKER_METRICS_PORT"),
        ("background-services", "PREFECT_HAMILTON_SERVICES_METRICS_PORT"),
    ],
)
def test_prometheus_reaches_all_pods(
    component: str, variable: str, profiles: dict[str, Release]
) -> None:
    release = profiles["everything"]
    peers = profile_values("everything")["networkPolicy"]["metricsFrom"]
    deployments = [o for o in release.of("Deployment") if labels(o)[COMPONENT] == component]
    service = release.get("Service", f"-{component}")
    assert service["spec"]["clusterIP"] == "None"  # each pod has metrics of its own
    assert service["spec"]["ports"] == [{"name": "metrics", "port": 9090, "targetPort": "metrics"}]
    assert deployments
    for deployment in deployments:
        template = deployment["spec"]["template"]
        (container,) = [c for c in template["spec"]["containers"] if c["name"] == component]
        assert {"name": "metrics", "containerPort": 9090} in container["ports"]
        assert env(container)[variable] == "9090"
        assert service["spec"]["selector"].items() <= labels(template).items()
    monitor = release.get("ServiceMonitor", f"-{component}")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels(service).items()
    assert monitor["spec"]["endpoints"][0]["port"] == "metrics"
    assert labels(monitor)["release"] == "prometheus"
    (rule,) = release.get("NetworkPolicy", f"-{component}")["spec"]["ingress"]
    assert rule == {"from": peers, "ports": [{"port": 9090, "protocol": "TCP"}]}


def test_without_metrics_pods_have_no_port_for_them(default: Release) -> None:
    assert "METRICS_PORT" not in default.text
    assert not [o for o in default.of("Service") if labels(o)[COMPONENT] == "worker"]
    assert "ingress" not in default.get("NetworkPolicy", "-worker")["spec"]

    split = render({"server": {"replicas": 2}, "valkey": {"enabled": True}})
    assert "METRICS_PORT" not in split.text
    services = "background-services"
    assert not [o for o in split.of("Service") if labels(o)[COMPONENT] == services]
    assert "ingress" not in split.get("NetworkPolicy", f"-{services}")["spec"]


def test_prometheus_reaches_the_hamilton_ui(profiles: dict[str, Release], default: Release) -> None:
    release = profiles["everything"]
    template = release.get("Deployment", "-ui")["spec"]["template"]
    (container,) = [c for c in template["spec"]["containers"] if c["name"] == "hamilton-ui"]
    assert {"name": "metrics", "containerPort": 9090} in container["ports"]
    assert env(container)["HAMILTON_UI_METRICS_PORT"] == "9090"
    service = release.get("Service", "-ui-metrics")
    assert service["spec"]["clusterIP"] == "None"  # each pod has metrics of its own
    assert service["spec"]["selector"].items() <= labels(template).items()
    monitor = release.get("ServiceMonitor", "-ui")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels(service).items()
    assert monitor["spec"]["endpoints"][0]["port"] == "metrics"
    assert labels(monitor)["release"] == "prometheus"
    peers = profile_values("everything")["networkPolicy"]["metricsFrom"]
    rules = release.get("NetworkPolicy", "-ui")["spec"]["ingress"]
    assert rules[1] == {"from": peers, "ports": [{"port": 9090, "protocol": "TCP"}]}
    # What a load balancer, Ingress or Gateway publishes is the port of the UI alone.
    assert [port["name"] for port in release.get("Service", "orchestra-ui")["spec"]["ports"]] == [
        "http"
    ]

    assert "METRICS_PORT" not in default.text
    assert not [o for o in default.of("Service") if o["metadata"]["name"].endswith("-ui-metrics")]
    assert len(default.get("NetworkPolicy", "-ui")["spec"]["ingress"]) == 1


def test_the_databases_are_as_before_without_exporters(default: Release) -> None:
    assert "exporter" not in default.text
    ports = default.get("Service", "-postgres")["spec"]["ports"]
    assert [each["name"] for each in ports] == ["postgres"]


def test_a_release_without_a_server_has_metrics_of_an_external_api() -> None:
    release = render(
        {
            "server": {"enabled": False},
            "hamiltonUi": {"enabled": False},
            "postgres": {"enabled": False},
            "api": {"url": "https://prefect.example.org:8443/api"},
            "auth": {"type": "apiKey", "existingSecret": "cloud"},
            "metrics": {"enabled": True},
            "serviceMonitor": {"enabled": True},
        }
    )
    (container,) = containers(release.get("Deployment", "-metrics")["spec"]["template"])
    assert env(container)["PREFECT_API_URL"] == "https://prefect.example.org:8443/api"
    assert env(container)["PREFECT_API_KEY"]["secretKeyRef"]["name"] == "cloud"
    assert {labels(o)[COMPONENT] for o in release.of("ServiceMonitor")} == {"metrics", "worker"}
    egress = release.get("NetworkPolicy", "-metrics")["spec"]["egress"]
    assert {"ports": [{"port": 8443, "protocol": "TCP"}]} in egress


def test_dashboards_are_in_config_maps_for_grafanas_sidecar(
    profiles: dict[str, Release], default: Release
) -> None:
    found = profiles["everything"].get("ConfigMap", "-flow-runs")
    assert labels(found)["grafana_dashboard"] == "prefect"
    assert found["metadata"]["annotations"]["grafana_folder"] == "Prefect"
    (content,) = found["data"].values()
    assert json.loads(content)["title"] == "Prefect: flow runs"
    assert "grafana_dashboard" not in default.text
