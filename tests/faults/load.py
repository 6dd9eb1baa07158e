"""A steady load of short flow runs, and what became of them."""

import json
import math
import os
import random
import time
import uuid
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import tenacity

from scripts import kind
from tests import faketime
from tests.clusters import RELEASE, WALKTHROUGH, Cluster, eventually
from tests.faults.verdict import FINAL, Report, Run, judge, longest_gap
from tests.services import ROOT

INTERVAL = float(os.environ.get("FAULTS_INTERVAL", "4"))
SETTLE = float(os.environ.get("FAULTS_SETTLE", "600"))
SCHEDULER_SECONDS = 60
"""Within which the server has created the runs of a new schedule, though it may be restarted."""
RECORDER_NAMESPACE = "faults"
AUTOMATION = "faults: follow"
MIX = [
    *("succeeds", "succeeds", "succeeds", "takes_long", "has_parts"),
    *("retries", "fails", "waits_for_tag", "waits_for_slot", "leads"),
]
"""Kinds of runs; a load has as many of each as this list says, in an order of its own."""
ACTIVE = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]
OTHERS = ("follows", "each_minute", "eats_memory", "tracks", "has_wrong_clock")
CLOCK_IMAGE = "prefect-hamilton/flows:clock"
CLOCK = {"image": CLOCK_IMAGE, "env": faketime.clock("+5m", "/usr/lib/libfaketime.so.1")}
"""Job variables of a pod whose clock is ahead."""
FLOW_PODS = "app.kubernetes.io/component=flow-run"


def _is_worth_another_try(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx.HTTPError)


patiently = tenacity.retry(
    retry=tenacity.retry_if_exception(_is_worth_another_try),
    stop=tenacity.stop_after_delay(900),
    wait=tenacity.wait_fixed(1),
    reraise=True,
)


@dataclass
class Recorder:
    """The pod that keeps the rows, in a namespace that no fault touches."""

    cluster: Cluster

    def install(self) -> None:
        image = "prefect-hamilton/prefect:0.1.0"
        labels = {"app": "recorder"}
        script = (ROOT / "tests" / "faults" / "recorder.py").read_text()
        pod = {
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "recorder",
                    "image": image,
                    "command": ["python", "/script/recorder.py"],
                    # Without a request it would get what the others leave.
                    "resources": {"requests": {"cpu": "200m"}},
                    "startupProbe": {"tcpSocket": {"port": 8080}, "failureThreshold": 90},
                    "volumeMounts": [
                        {"name": "script", "mountPath": "/script"},
                        {"name": "data", "mountPath": "/data"},
                    ],
                }
            ],
            "volumes": [
                {"name": "script", "configMap": {"name": "recorder"}},
                # It lives as long as the pod, also when the node restarts.
                {"name": "data", "emptyDir": {}},
            ],
        }
        objects = [
            _object("v1", "Namespace", RECORDER_NAMESPACE, namespace=None),
            _object("v1", "ConfigMap", "recorder", data={"recorder.py": script}),
            _object(
                "v1",
                "Service",
                "recorder",
                spec={"selector": labels, "ports": [{"port": 8080}]},
            ),
            _object(
                "apps/v1",
                "Deployment",
                "recorder",
                spec={
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": pod},
                },
            ),
        ]
        content = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        kind.run("kubectl", "apply", "-f", "-", text=content)
        where = ("-n", RECORDER_NAMESPACE)
        self.cluster.run("kubectl", *where, "rollout", "status", "deploy/recorder", "--timeout=2m")

    @eventually
    def rows(self) -> list[dict[str, Any]]:
        service = f"/api/v1/namespaces/{RECORDER_NAMESPACE}/services/recorder:8080/proxy/rows"
        return list(json.loads(self.cluster.run("kubectl", "get", "--raw", service)))


def _object(version: str, what: str, name: str, namespace: str | None = "", **rest: Any) -> Any:
    metadata = {"name": name}
    if namespace is not None:
        metadata["namespace"] = namespace or RECORDER_NAMESPACE
    return {"apiVersion": version, "kind": what, "metadata": metadata, **rest}


@dataclass
class Load(ABC):
    """Deployments of load_flows.py and the runs that were created of them."""

    deployments: dict[str, str] = field(default_factory=dict)
    creating: dict[Future[str], str] = field(default_factory=dict)
    """Runs that have been asked for, and their kinds."""
    hit: set[str] = field(default_factory=set)
    """Names of the flow pods that a fault ended."""
    forced: set[str] = field(default_factory=set)
    """Those among them that were killed at once."""
    faults: int = 0
    canary: tuple[float, Future[str]] | None = None
    """When the last fault was over, and a run that was asked for then."""
    began: float = field(default_factory=time.time)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(32))

    @patiently
    def ask(self, method: str, path: str, /, **body: Any) -> Any:
        """Ask the API until it answers."""
        content = {"json": body} if body else {}
        response = self.api().request(method, path, timeout=15, **content)
        response.raise_for_status()
        return response.json() if response.content else None

    @abstractmethod
    def api(self) -> httpx.Client:
        """Return a client of the Prefect API."""

    @abstractmethod
    def where(self) -> dict[str, Any]:
        """Return what a deployment says of where its flow runs and where its code comes from."""

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """Return what executions have written."""

    def active(self) -> list[str]:
        """Return names of what still runs, but of the schedule."""
        return []

    def ended_while_running(self, states: list[Any]) -> bool:
        """Whether a fault ended the run's process in the moment before its flow wrote a row."""
        return False

    def infrastructure(self, run_id: str) -> list[str]:
        """Return what is left of a run's infrastructure, a line each."""
        return []

    def register(self) -> None:
        """Create the deployments, limits, the automation and the schedule."""
        where = self.where()
        for name in {*MIX, *OTHERS}:
            flow_id = self.ask("POST", "/flows/", name=name.replace("_", "-"))["id"]
            self.deployments[name] = self.ask(
                "POST",
                "/deployments/",
                name="faults",
                flow_id=flow_id,
                entrypoint=f"tests/faults/load_flows.py:{name}",
                parameter_openapi_schema={"type": "object", "properties": {}},
                **where,
            )["id"]
        self.ask("POST", "/concurrency_limits/", tag="faults", concurrency_limit=2)
        limits = self.ask("POST", "/v2/concurrency_limits/filter")
        if "faults" not in {limit["name"] for limit in limits}:
            self.ask("POST", "/v2/concurrency_limits/", name="faults", limit=2)
        self.automate()
        self.schedule(active=True)

    def automate(self) -> None:
        """A run of `leads` that Completed starts one of `follows`."""
        leads = f"prefect.deployment.{self.deployments['leads']}"
        action = {
            "type": "run-deployment",
            "source": "selected",
            "deployment_id": self.deployments["follows"],
            # As text: an expression alone would be rendered as JSON.
            "parameters": {"cause": "{{ flow_run.id | string }}"},
        }
        trigger = {
            "type": "event",
            "posture": "Reactive",
            "expect": ["prefect.flow-run.Completed"],
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": {"prefect.resource.id": leads},
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": 0,
        }
        found = self.ask("POST", "/automations/filter", limit=200)
        if AUTOMATION not in {each["name"] for each in found}:
            self.ask("POST", "/automations/", name=AUTOMATION, trigger=trigger, actions=[action])

    def schedule(self, *, active: bool) -> None:
        """A run each minute, or none."""
        schedule = {"schedule": {"cron": "* * * * *"}, "active": True}
        path = f"/deployments/{self.deployments['each_minute']}"
        self.ask("PATCH", path, schedules=[schedule] if active else [])

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        self.schedule(active=False)

    def create(self, kind: str) -> Future[str]:
        """Ask for a run until the server has accepted it; the future has its id."""
        path = f"/deployments/{self.deployments[kind]}/create_flow_run"
        key = str(uuid.uuid4())

        def accepted() -> str:
            return str(self.ask("POST", path, idempotency_key=key)["id"])

        future = self.pool.submit(accepted)
        self.creating[future] = kind
        return future

    def run(self, seed: int, runs: int, each: Callable[[int], None] = lambda number: None) -> None:
        """Create runs at a steady pace, in random order; `each` is called for each of them."""
        kinds = MIX * math.ceil(runs / len(MIX))
        random.Random(seed).shuffle(kinds)  # noqa: S311
        for number, name in enumerate(kinds[:runs]):
            at = time.monotonic() + INTERVAL
            self.create(name)
            each(number)
            time.sleep(max(0.0, at - time.monotonic()))

    def measure_recovery(self) -> None:
        """Ask for the run whose end says that all is as before: a fault is over."""
        self.canary = (time.time(), self.create("succeeds"))

    def settle(self, what: str) -> Report:
        """Wait until all have ended, or the time is over, and judge them."""
        ended = time.time()
        while time.time() < ended + SETTLE:
            # First: a run that is accepted meanwhile is not among the known ones yet.
            accepted = all(future.done() for future in self.creating)
            known = self.known(ended)
            final = all(run["state_type"] in FINAL for run in known.values())
            if accepted and final and not self.active():
                break
            time.sleep(2)
        return self.report(what, ended)

    def recovery(self, known: dict[str, Any]) -> float:
        """Seconds from the end of the fault to the end of the run that was asked for then."""
        if self.canary is None:
            return 0.0
        since, future = self.canary
        end = known.get(future.result(), {}).get("end_time") if future.done() else None
        return datetime.fromisoformat(end).timestamp() - since if end else SETTLE

    def known(self, ended: float) -> dict[str, Any]:
        """The runs that the server knows of: those of this load, until it ended."""
        own = [future.result() for future in list(self.creating) if future.done()]
        found = []
        for start in range(0, len(own), 100):
            ids = {"id": {"any_": own[start : start + 100]}}
            found += self.ask("POST", "/flow_runs/filter", flow_runs=ids, limit=200)
        for name in ("follows", "each_minute"):
            since = datetime.fromtimestamp(self.began).astimezone().isoformat()
            until = datetime.fromtimestamp(ended).astimezone().isoformat()
            limits = {"expected_start_time": {"after_": since}}
            if name == "each_minute":
                limits["expected_start_time"]["before_"] = until
            by_deployment = {"id": {"any_": [self.deployments[name]]}}
            runs = self.ask(
                "POST",
                "/flow_runs/filter",
                flow_runs=limits,
                deployments=by_deployment,
                limit=200,
            )
            # A worker may have taken up a run of the schedule of an earlier load.
            began = datetime.fromtimestamp(self.began, UTC)
            found += [run for run in runs if datetime.fromisoformat(run["created"]) >= began]
        return {run["id"]: run for run in found}

    def report(self, what: str, ended: float) -> Report:
        """Judge each run."""
        known = self.known(ended)
        histories = {run_id: self.states(run_id) for run_id in known}
        # After the states: an execution that has ended by then has written all its rows.
        rows = self.rows()
        mine: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            mine[row["run"]].append(row)
        kinds = {deployment: kind for kind, deployment in self.deployments.items()}
        asked = {future.result(): name for future, name in self.creating.items()}
        asked |= {run["id"]: kinds[run["deployment_id"]] for run in known.values()}
        report = Report(what, faults=self.faults, to_normal=self.recovery(known))
        report.longest_gap = longest_gap(rows, self.began, ended)
        report.in_standby_pods = len(
            {r["run"] for r in rows if r["run"] in known and "-standby-" in r["pod"]}
        )
        for run_id, name in asked.items():
            states = histories.get(run_id, [])
            pairs = [(state["type"], state["name"]) for state in states]
            verdict = judge(Run(run_id, name, pairs), mine[run_id], self.hit, self.forced)
            if verdict.word == "wrongly Crashed" and self.ended_while_running(states):
                verdict.word = "Crashed with its pod"
            report.add(verdict)
            if verdict.word != "right" or verdict.rows_lost or verdict.rows_doubled:
                report.wrong.append(self.tell(run_id, name, verdict.word, states, mine[run_id]))
        self.count_subflows(report, asked)
        scheduled = [run for run in known.values() if asked[run["id"]] == "each_minute"]
        self.count_slots(report, scheduled, ended)
        self.count_events(report, list(known.values()), asked)
        return report

    def states(self, run_id: str) -> list[Any]:
        found = self.ask("GET", f"/flow_run_states/?flow_run_id={run_id}")
        return sorted(found, key=lambda state: str(state["timestamp"]))

    def count_subflows(self, report: Report, asked: dict[str, str]) -> None:
        """No subflow goes on when its parent has ended."""
        parents = [run_id for run_id, name in asked.items() if name == "has_parts"]
        subflows = {"parent_flow_run_id": {"any_": parents}, "state": {"type": {"any_": ACTIVE}}}
        for run in self.ask("POST", "/flow_runs/filter", flow_runs=subflows, limit=200):
            report.stuck += 1
            states, rows = self.states(run["id"]), list[dict[str, Any]]()
            report.wrong.append(self.tell(run["id"], "subflow", "stuck", states, rows))

    def count_slots(self, report: Report, scheduled: Iterable[Any], ended: float) -> None:
        """Each minute of the load has one run of the schedule, once the scheduler knows it."""
        by_minute: dict[str, list[Any]] = defaultdict(list)
        for run in scheduled:
            by_minute[run["expected_start_time"][:16]].append(run)
        self.count_doubled(report, by_minute)
        first, last = (int(moment // 60) for moment in (self.began + SCHEDULER_SECONDS, ended))
        slots = {
            datetime.fromtimestamp(60 * minute, UTC).isoformat()[:16]
            for minute in range(first + 1, last + 1)
        }
        report.slots_missed = len(slots - set(by_minute))

    def count_doubled(self, report: Report, runs: Mapping[str, list[Any]]) -> None:
        """Each slot of the schedule, or cause of an event, has one run."""
        for what, same in runs.items():
            for run in same[1:]:
                report.doubled += 1
                told = [f"doubled: {what}", *(str(each["created"]) for each in same)]
                report.wrong += ["\n  ".join(told)]
                report.wrong += [
                    self.tell(each["id"], what, "one of two", self.states(each["id"]), [])
                    for each in (same[0], run)
                ]

    def count_events(self, report: Report, runs: list[Any], asked: dict[str, str]) -> None:
        """Each run of `leads` that Completed has one of `follows`."""
        causes: dict[str, list[Any]] = defaultdict(list)
        for run in runs:
            if asked[run["id"]] == "follows":
                causes[str(run["parameters"].get("cause"))].append(run)
        self.count_doubled(report, causes)
        leads = {
            run["id"]
            for run in runs
            if asked[run["id"]] == "leads" and run["state_type"] == "COMPLETED"
        }
        report.events_missed = len(leads - set(causes))

    def tell(
        self, run_id: str, kind: str, word: str, states: list[Any], rows: list[dict[str, Any]]
    ) -> str:
        """A paragraph about a run: its states, rows, pods and log."""
        lines = [f"{word}: {kind} {run_id}"]
        lines += [
            f"  {state['timestamp'][11:19]} {state['name']} {(state['message'] or '')[:200]}"
            for state in states
        ]
        for row in rows:
            at = datetime.fromtimestamp(row["arrived"]).astimezone().strftime("%H:%M:%S")
            killed = " (killed)" if row["pod"] in self.hit else ""
            about = f"attempt {row['attempt']} {row['pod']}{killed}"
            lines.append(f"  row {at} {row['event']} {row.get('outcome', '')} {about}")
        lines += [f"  {line}" for line in self.infrastructure(run_id)]
        logs = self.ask("POST", "/logs/filter", logs={"flow_run_id": {"any_": [run_id]}}, limit=60)
        lines += [f"  log {line['timestamp'][11:19]} {line['message'][:300]}" for line in logs]
        return "\n".join(lines)


@dataclass
class ClusterLoad(Load):
    """The load on a cluster, where each flow run is a pod."""

    cluster: Cluster = field(kw_only=True)

    def api(self) -> httpx.Client:
        return self.cluster.api

    def where(self) -> dict[str, Any]:
        pull_steps = self.cluster.deployment(WALKTHROUGH)["pull_steps"]
        return {"work_pool_name": "kubernetes", "pull_steps": pull_steps}

    def register(self) -> None:
        # Nothing of an earlier load holds a slot.
        self.cluster.kubectl("delete", "jobs", "-l", FLOW_PODS)
        super().register()
        self.ask(
            "PATCH", f"/deployments/{self.deployments['has_wrong_clock']}", job_variables=CLOCK
        )

    @eventually
    def active(self) -> list[str]:
        phases = "status.phase!=Succeeded,status.phase!=Failed"
        pods = self.cluster.get("pods", "-l", FLOW_PODS, f"--field-selector={phases}")["items"]
        return [
            pod["metadata"]["name"]
            for pod in pods
            if (labels := pod["metadata"]["labels"]).get("prefect.io/deployment-id")
            != self.deployments["each_minute"]
            and labels.get("prefect-hamilton/standby") != "idle"
        ]

    def rows(self) -> list[dict[str, Any]]:
        return Recorder(self.cluster).rows()

    def infrastructure(self, run_id: str) -> list[str]:
        selector = f"prefect.io/flow-run-id={run_id}"
        wide = self.cluster.kubectl("get", "jobs,pods", "-l", selector, "--no-headers", check=False)
        return wide.splitlines()


def component(name: str) -> str:
    """The label selector of a component of the release."""
    return f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component={name}"
