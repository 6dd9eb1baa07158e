"""A release with its monitoring on a kind cluster, and real back ends that are asked by their APIs.

    make test-monitoring KIND_CLUSTER=name

The cluster has the Prometheus Operator with its CRDs, of which `bundle.yaml` of its release 0.85.0
is one source; the other back ends come from `scripts/monitoring/`. Build the images of the project
first: `docker buildx bake --load`. The suite leaves all of it in the cluster. Its files build upon
each other's runs and alerts, in the order of their names.

The node must be reachable from this machine, as Docker on Linux makes it.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import httpx
import pytest
import tenacity

from scripts import back_ends, chart_images, kind
from tests.clusters import RELEASE, WALKTHROUGH, Cluster
from tests.exported import shorten
from tests.services import ROOT

NAME = os.environ.get("KIND_CLUSTER", "")
TOOLS = ("docker", "kind", "helm", "kubectl")
VALUES = [kind.VALUES, back_ends.VALUES, ROOT / "tests" / "monitoring" / "values.yaml"]
ETL = "Enterprise Data Pipeline/production-etl-k8s"


T = TypeVar("T")


class Row(NamedTuple):
    """An alert that its cause made fire, and the cure resolve."""

    cause: str
    alert: str
    fired: float
    resolved: float


class Message(NamedTuple):
    """A message of the alerts, which a preset sent after its cause; its setting `seconds`."""

    cause: str
    preset: str
    setting: int
    after: float


ROWS = pytest.StashKey[list[Row]]()
MESSAGES = pytest.StashKey[list[Message]]()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for title, head, lines in (
        (
            "seconds until alerts fire and resolve",
            "| Cause | Alert | Fires after | Resolves after |",
            [
                f"| {each.cause} | `{each.alert}` | {each.fired:.0f} s | {each.resolved:.0f} s |"
                for each in config.stash.get(ROWS, [])
            ],
        ),
        (
            "seconds until a message arrives",
            "| Cause | Preset | `seconds` | Message after |",
            [
                f"| {each.cause} | `{each.preset}` | {each.setting} | {each.after:.0f} s |"
                for each in config.stash.get(MESSAGES, [])
            ],
        ),
    ):
        if lines:
            terminalreporter.section(title)
            for line in (head, "|---|---|--:|--:|", *lines):
                terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def messages(request: pytest.FixtureRequest) -> list[Message]:
    """The messages that have arrived, printed when all tests have ended."""
    return request.config.stash.setdefault(MESSAGES, [])


def until(ask: Callable[[], T], seconds: float = 180) -> T:
    """Ask until the answer is true or not empty; returns it. Back ends may be away meanwhile."""
    for attempt in tenacity.Retrying(
        retry=tenacity.retry_if_exception_type((AssertionError, httpx.HTTPError)),
        stop=tenacity.stop_after_delay(seconds),
        wait=tenacity.wait_fixed(1),
        reraise=True,
    ):
        with attempt:
            answer = ask()
            assert answer
    return answer


@dataclass
class Monitored(Cluster):
    """The cluster, with what its back ends know."""

    node: str = ""
    """Address of its node."""
    began: float = field(default_factory=time.time)
    rows: list[Row] = field(default_factory=list)

    @property
    def api_url(self) -> str:
        return f"http://{self.node}:{kind.PREFECT_NODE_PORT}/api"

    def ask(self, back_end: str, path: str, **parameters: Any) -> httpx.Response:
        """The answer of a back end."""
        port = back_ends.BACK_ENDS[back_end].node_port
        url = f"http://{self.node}:{port}{path}"
        return httpx.get(url, params=parameters, timeout=30).raise_for_status()

    def series(self, expression: str) -> list[dict[str, str]]:
        """Labels of what an expression of PromQL returns at any time since the suite began."""
        found = self.ask(
            "prometheus",
            "/api/v1/query_range",
            query=expression,
            start=self.began,
            end=time.time(),
            step="5s",
        )
        return [each["metric"] for each in found.json()["data"]["result"]]

    def firing(self, alert: str, **labels: str) -> bool:
        """Whether the alert is active in Alertmanager."""
        wanted = {"alertname": alert, **labels}.items()
        active = self.ask("alertmanager", "/api/v2/alerts").json()
        return any(wanted <= each["labels"].items() for each in active)

    def lines(self, query: str, limit: int = 10_000) -> list[dict[str, str]]:
        """The log lines that LogsQL finds in the release's namespace, with all their fields."""
        found = self.ask(
            "victoria-logs",
            "/select/logsql/query",
            query=f'"k8s.namespace.name":="{self.namespace}" {query}',
            limit=limit,
        )
        return [json.loads(line) for line in found.text.splitlines()]

    def traces(self, run_id: str) -> list[Any]:
        """The traces with a span of the flow run."""
        found = self.ask(
            "jaeger",
            "/api/traces",
            service="flows",
            tags=json.dumps({"prefect.run.id": run_id}),
            limit=20,
        )
        return list(found.json()["data"])

    def provoke(
        self, cause: Callable[[], object], cure: Callable[[], object], *alerts: "Expected"
    ) -> None:
        """Let the cause make all alerts fire, and the cure resolve them; notes the seconds."""
        until(lambda: not any(self.firing(each.alert, **each.labels) for each in alerts))
        fired = self._seconds(cause, alerts, active=True)
        resolved = self._seconds(cure, alerts, active=False)
        self.rows += [Row(each.cause, each.alert, fired[each], resolved[each]) for each in alerts]

    def _seconds(
        self, change: Callable[[], object], alerts: "tuple[Expected, ...]", *, active: bool
    ) -> "dict[Expected, float]":
        began = time.monotonic()
        change()
        found: dict[Expected, float] = {}

        def missing() -> list[str]:
            for each in alerts:
                if each not in found and self.firing(each.alert, **each.labels) == active:
                    found[each] = time.monotonic() - began
            return [each.alert for each in alerts if each not in found]

        with suppress(AssertionError):
            until(lambda: not missing(), 300)
        assert not missing(), f"{'firing' if active else 'resolved'} are only {found}"
        return found

    def scale(self, what: str, replicas: int) -> None:
        """Scale a component, such as deploy/server."""
        kind_, _, name = what.partition("/")
        self.kubectl("scale", f"{kind_}/{RELEASE}-{name}", f"--replicas={replicas}")


class Expected(NamedTuple):
    """An alert that a cause makes fire; labels as pairs."""

    cause: str
    alert: str
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.pairs)


class Runs(NamedTuple):
    """The ids of flow runs."""

    good: str
    failed: str
    killed: str
    late: str
    etl: str


@pytest.fixture(scope="session")
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Monitored]:
    """The release and its back ends; the rules of the release are as it installs them."""
    if not NAME:
        pytest.skip("KIND_CLUSTER names no kind cluster that has the Prometheus Operator")
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"not on PATH: {', '.join(missing)}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(tmp_path_factory.mktemp("monitoring") / "kubeconfig"))
        kind.run("kind", "export", "kubeconfig", "--name", NAME)
        context = kind.context_of(NAME)
        if not back_ends.has_operator(partial(kind.kubectl, context)):
            pytest.skip(f"the kind cluster {NAME} has no CRDs of the Prometheus Operator")
        address = "{{.NetworkSettings.Networks.kind.IPAddress}}"
        node = kind.run("docker", "inspect", "--format", address, f"{NAME}-control-plane")
        rows = request.config.stash.setdefault(ROWS, [])
        cluster = Monitored({**os.environ, "NO_COLOR": "1"}, 0, 0, "", NAME, node=node, rows=rows)
        install(cluster)
        yield cluster


def install(cluster: Monitored) -> None:
    """Install the back ends and the release, and wait until Prometheus scrapes all of it."""
    context = kind.context_of(NAME)
    identity = kind.load_images(NAME, chart_images.images(VALUES))
    kind.install_back_ends(NAME, back_ends.OPERATOR, timeout=300)
    add_state_metrics(cluster)
    kind.create_namespace(context)
    nobody = "--from-literal=url=http://nobody.monitoring.svc:8080/"
    secret = ("create", "secret", "generic", "nobody", nobody, "--dry-run=client", "-o", "yaml")
    kind.kubectl(context, "apply", "-f", "-", text=kind.kubectl(context, *secret))
    # What a suite before has changed is made anew.
    kind.kubectl(context, "delete", "prometheusrules,cronjobs", "--all")
    url = f"server.url=http://{cluster.node}:{kind.PREFECT_NODE_PORT}"
    kind.install(context, url, f"rolloutToken={identity}", files=VALUES)
    commit, _ = kind.snapshot()
    kind.publish(context, commit, timeout=600)
    kind.wait_until_ready(context, timeout=600)
    components = ("server", "metrics", "worker", "postgres", "valkey")
    jobs = {f"{RELEASE}-{each}" for each in components}
    jobs |= {"kube-state-metrics", "kubelet"}
    until(lambda: jobs <= {each["job"] for each in cluster.series("up == 1")})


def add_state_metrics(cluster: Monitored) -> None:
    """Install the stand-in for kube-state-metrics."""
    folder = ROOT / "tests" / "monitoring"
    here = ("--namespace", back_ends.NAMESPACE)
    program = f"--from-file={folder / 'state_metrics.py'}"
    config = ("create", "configmap", "kube-state-metrics", program, *here)
    context = kind.context_of(NAME)
    manifest = kind.kubectl(context, *config, "--dry-run=client", "-o", "yaml")
    kind.kubectl(context, *here, "apply", "-f", "-", text=manifest)
    kind.kubectl(context, *here, "apply", "-f", str(folder / "kube-state-metrics.yaml"))
    cluster.kubectl(*here, "rollout", "status", "deploy/kube-state-metrics", "--timeout=180s")


@pytest.fixture(scope="session")
def runs(cluster: Monitored) -> Runs:
    """Runs that succeed, fail, are killed for their memory, and are late without a worker.

    The schedule of a deployment is off.
    """
    cluster.api.post("/work_pools/", json={"name": "nobody", "type": "kubernetes"})
    late = cluster.probe("waits", name="late", work_pool="nobody")
    off = {"schedule": {"cron": "0 0 * * *"}, "active": False}
    cluster.probe("waits", name="off", schedules=[off])
    runs = Runs(
        good=cluster.start(WALKTHROUGH),
        failed=cluster.start(WALKTHROUGH, should_fail=True),
        killed=eat_memory(cluster),
        late=cluster.start(late),
        etl=cluster.start(ETL),
    )
    cluster.wait_for_state(runs.good, "Completed")
    cluster.wait_for_state(runs.failed, "Failed")
    cluster.wait_for_state(runs.killed, "Crashed")
    cluster.wait_for_state(runs.late, "Late")
    cluster.wait_for_state(runs.etl, "Completed")
    return runs


def eat_memory(cluster: Cluster) -> str:
    """Start a run that is killed for its memory; its id."""
    settings = {"memory_limit": "256Mi"}
    return cluster.start(cluster.probe("eats_memory"), job_variables=settings)


def cancelled(cluster: Cluster, run: str) -> None:
    """Cancel a run that no worker has to stop."""
    state = {"type": "CANCELLED", "name": "Cancelled"}
    cluster.post(f"/flow_runs/{run}/set_state", state=state, force=True)


def no_pod_fits() -> dict[str, Any]:
    """Job variables of a pod that fits on no node."""
    return {"node_selector": {"example.org/disk": "absent"}}


@pytest.fixture(scope="session")
def short_rules(cluster: Monitored) -> None:
    """The alerts of the release wait less: their `for` and the windows of their rates."""
    rule = cluster.get("prometheusrule", RELEASE)
    shorten(rule)
    context = kind.context_of(NAME)
    kind.kubectl(context, "replace", "-f", "-", text=json.dumps(rule))

    def waits() -> set[float]:
        groups = cluster.ask("prometheus", "/api/v1/rules").json()["data"]["groups"]
        return {each["duration"] for group in groups for each in group["rules"]}

    until(lambda: waits() == {5})
