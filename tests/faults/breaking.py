"""Faults: pods drawn from a seed are deleted, and named faults last for a while."""

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from scripts import kind
from tests import faketime
from tests.clusters import NAMESPACE, RELEASE, VOLUMES, Cluster, eventually
from tests.faults.load import FLOW_PODS, ClusterLoad, component
from tests.services import ROOT

PAUSE = [float(word) for word in os.environ.get("FAULTS_PAUSE", "6 12").split()]
VICTIMS = os.environ.get(
    "FAULTS_VICTIMS", "server worker postgres git-server background-services valkey"
).split()
FLOW_POD = "flow-run"


@eventually
def names(cluster: Cluster, selector: str) -> list[str]:
    """Names of pods that run or are pending, and are not being deleted."""
    return sorted(
        pod["metadata"]["name"]
        for pod in cluster.get("pods", "-l", selector)["items"]
        if pod["status"]["phase"] in ("Pending", "Running")
        and "deletionTimestamp" not in pod["metadata"]
    )


def _note(load: ClusterLoad, pod: str, *, force: bool) -> None:
    """Note that a fault ends a flow pod."""
    load.hit.add(pod)
    if force:
        load.forced.add(pod)


@eventually
def delete(cluster: Cluster, pod: str, *, force: bool) -> None:
    options = ["--grace-period=0", "--force"] if force else []
    cluster.kubectl("delete", "pod", pod, "--wait=false", "--ignore-not-found", *options)


@dataclass
class Draws:
    """Deletes a pod drawn from a seed, then the next one after a pause, in a thread."""

    load: ClusterLoad
    seed: int
    say: Callable[[str], None]
    ended: threading.Event = field(default_factory=threading.Event)
    errors: list[Exception] = field(default_factory=list)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.ended.set()
            thread.join(60)
        if self.errors:
            raise self.errors[0]

    def _work(self) -> None:
        draws = random.Random(self.seed)  # noqa: S311
        cluster = self.load.cluster
        # What this installation has. A flow pod is drawn half as often as another.
        present = [v for v in VICTIMS if names(cluster, component(v))]
        weights = [2] * len(present) + [1]
        while True:
            # All draws in any case, so that the same seed always gives the same faults.
            pause, place, force = draws.uniform(*PAUSE), draws.random(), draws.random() < 0.5
            (victim,) = draws.choices([*present, FLOW_POD], weights)
            if self.ended.wait(pause):
                return
            try:
                self._delete(victim, place, force=force)
            except Exception as error:
                self.errors.append(error)

    def _delete(self, victim: str, place: float, *, force: bool) -> None:
        cluster = self.load.cluster
        found = names(cluster, component(victim))
        if not found:
            self.say(f"no pod of {victim} to delete")
            return
        pod = found[int(place * len(found))]
        if victim == FLOW_POD:
            _note(self.load, pod, force=force)
        self.load.faults += 1
        self.say(f"delete {pod}{' by force' if force else ''}")
        delete(cluster, pod, force=force)


@dataclass(frozen=True)
class Fault:
    """A named fault: what breaks, for how long, and how it is undone."""

    name: str
    breaks: Callable[[ClusterLoad], Any]
    seconds: float = 0
    mends: Callable[[ClusterLoad], Any] = lambda load: None
    needs: str = ""
    """A component without which there is nothing to break."""

    def happen(self, load: ClusterLoad) -> None:
        """Cause the fault, wait, and repair it."""
        load.faults += 1
        self.breaks(load)
        try:
            time.sleep(self.seconds)
        finally:
            self.mends(load)
        load.measure_recovery()


def kill(victim: str) -> Callable[[ClusterLoad], None]:
    """All pods of a component, at once."""

    def breaks(load: ClusterLoad) -> None:
        for pod in names(load.cluster, component(victim)):
            delete(load.cluster, pod, force=True)

    return breaks


def kill_one(victim: str) -> Callable[[ClusterLoad], None]:
    def breaks(load: ClusterLoad) -> None:
        delete(load.cluster, names(load.cluster, component(victim))[0], force=True)

    return breaks


def signal(victim: str, name: str) -> Callable[[ClusterLoad], None]:
    """Send a signal to each process in the pods of a component, but their first, which waits."""

    def breaks(load: ClusterLoad) -> None:
        for pod in names(load.cluster, component(victim)):
            load.cluster.kubectl("exec", pod, "--", "sh", "-c", f"kill -{name} -1", check=False)

    return breaks


def scale(workload: str, replicas: int) -> Callable[[ClusterLoad], None]:
    def breaks(load: ClusterLoad) -> None:
        load.cluster.kubectl("scale", f"{workload}", f"--replicas={replicas}")

    return breaks


def in_node(command: str) -> Callable[[ClusterLoad], None]:
    def breaks(load: ClusterLoad) -> None:
        load.cluster.in_node(command)

    return breaks


def restart_node(load: ClusterLoad) -> None:
    assert VOLUMES not in load.cluster.in_node("mount"), (
        "the node would lose PostgreSQL's files: take another cluster"
    )
    for pod in names(load.cluster, FLOW_PODS):
        _note(load, pod, force=True)
    kind.run("docker", "restart", f"{load.cluster.name}-control-plane")


def empty_valkey(load: ClusterLoad) -> None:
    shell = 'REDISCLI_AUTH="$VALKEY_PASSWORD" valkey-cli FLUSHALL'
    for pod in names(load.cluster, component("valkey")):
        load.cluster.kubectl("exec", pod, "--", "sh", "-c", shell)
        delete(load.cluster, pod, force=True)


def a_flow_pod(load: ClusterLoad, flow: str = "takes_long", *, force: bool = False) -> str:
    """A flow pod that runs, and that a fault ends now."""
    load.create(flow).result()
    deployment = load.deployments[flow]
    selector = f"{FLOW_PODS},prefect.io/deployment-id={deployment}"
    for _ in range(240):
        pods = load.cluster.get("pods", "-l", selector)["items"]
        running = [p["metadata"]["name"] for p in pods if p["status"]["phase"] == "Running"]
        if running:
            _note(load, running[0], force=force)
            return str(running[0])
        time.sleep(0.5)
    raise AssertionError("no flow pod runs")


def delete_flow_pod(*, force: bool) -> Callable[[ClusterLoad], None]:
    def breaks(load: ClusterLoad) -> None:
        delete(load.cluster, a_flow_pod(load, force=force), force=force)

    return breaks


def delete_flow_pod_with_wrong_clock(load: ClusterLoad) -> None:
    """It says when its flow run is due again."""
    delete(load.cluster, a_flow_pod(load, "has_wrong_clock"), force=False)


class Away:
    """A workload that is scaled to 0, and back to what it had."""

    def __init__(self, workload: str) -> None:
        self._workload = workload
        self._replicas = 1

    def breaks(self, load: ClusterLoad) -> None:
        self._replicas = load.cluster.get(self._workload)["spec"]["replicas"]
        scale(self._workload, 0)(load)

    def mends(self, load: ClusterLoad) -> None:
        scale(self._workload, self._replicas)(load)


def delete_flow_pod_without_server(load: ClusterLoad) -> None:
    """As when the node is drained that has the only server."""
    pod = a_flow_pod(load)
    SERVER_AWAY.breaks(load)
    load.cluster.kubectl("wait", "pod", "-l", component("server"), "--for=delete", "--timeout=60s")
    delete(load.cluster, pod, force=False)


def evict_flow_pod(load: ClusterLoad) -> None:
    pod = a_flow_pod(load)
    eviction = (
        f'{{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {{"name": "{pod}", '
        f'"namespace": "{NAMESPACE}"}}}}'
    )
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
    kind.run("kubectl", "create", "--raw", path, "-f", "-", text=eviction)


def run_out_of_memory(load: ClusterLoad) -> None:
    load.create("eats_memory").result()


def track_without_hamilton_ui(load: ClusterLoad) -> None:
    """One flow run is under way when the Hamilton UI goes, the others start without it."""
    load.create("tracks").result()
    HAMILTON_UI_AWAY.breaks(load)
    for _ in range(3):
        load.create("tracks").result()


class Partition:
    """The first worker's packets to the API are dropped in the node."""

    def __init__(self) -> None:
        self._rule = ""

    def breaks(self, load: ClusterLoad) -> None:
        (pod, *_) = load.cluster.get("pods", "-l", component("worker"))["items"]
        address = pod["status"]["podIP"]
        self._rule = f"FORWARD -s {address} -p tcp --dport 4200 -j DROP"
        load.cluster.in_node(f"iptables -I {self._rule}")

    def mends(self, load: ClusterLoad) -> None:
        load.cluster.in_node(f"iptables -D {self._rule}")


def rename_table(old: str, new: str) -> Callable[[ClusterLoad], None]:
    """The API's statements then fail with an error that is no outage: it answers 500."""

    def breaks(load: ClusterLoad) -> None:
        load.cluster.rename_table(old, new)

    return breaks


def exhaust_connections(load: ClusterLoad) -> None:
    """As many sessions as the server lets in; they end by themselves."""
    sessions = "for i in $(seq 110); do psql -U postgres -c 'SELECT pg_sleep(45)' & done; wait"
    pod = f"{RELEASE}-postgres-0"
    load.cluster.kubectl("exec", pod, "--", "sh", "-c", f"{sessions} >/dev/null 2>&1", check=False)


def commands(number: int) -> str:
    """Return a block of commands of docs/operate.md on the password of Prefect."""
    section = (
        (ROOT / "docs/operate.md").read_text().split("\n## Replace the password of Prefect\n")[1]
    )
    return re.findall(r"```sh\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)[number]


def execute(number: int) -> Callable[[ClusterLoad], None]:
    def breaks(load: ClusterLoad) -> None:
        load.cluster.run("bash", "-euc", commands(number))

    return breaks


def replace_credential(load: ClusterLoad) -> None:
    """Up to the point where new pods have the new one, and the server still accepts the old one."""
    execute(0)(load)
    execute(1)(load)
    load.cluster.__dict__.pop("api", None)


def remove_old_credential(load: ClusterLoad) -> None:
    """When no flow pod is left that was there at the exchange."""
    old = set(names(load.cluster, FLOW_PODS))

    @eventually
    def have_ended() -> None:
        assert not old & set(names(load.cluster, FLOW_PODS))

    have_ended()
    execute(2)(load)


POSTGRES = f"statefulset/{RELEASE}-postgres"


def fill_disk(load: ClusterLoad) -> None:
    """Take the rest of PostgreSQL's disk."""
    folder = load.cluster.put_postgres_on_small_disk()
    load.cluster.in_node(f"cat /dev/zero > {folder}/full || true")


def free_disk(load: ClusterLoad) -> None:
    load.cluster.in_node(f"rm {VOLUMES}/*data-{RELEASE}-postgres-0/full")


APISERVER = "/etc/kubernetes/manifests/kube-apiserver.yaml"

CUT_OFF = Partition()
SERVER_AWAY = Away(f"deploy/{RELEASE}-server")
GIT_AWAY = Away(f"deploy/{RELEASE}-git-server")
POSTGRES_AWAY = Away(POSTGRES)
HAMILTON_UI_AWAY = Away(f"deploy/{RELEASE}-ui")

FAULTS = [
    Fault("worker killed", kill("worker")),
    Fault("worker stopped 60 s", signal("worker", "STOP"), 60, signal("worker", "CONT")),
    Fault("one worker cut off 60 s", CUT_OFF.breaks, 60, CUT_OFF.mends),
    Fault("server killed", kill("server")),
    Fault("one API replica killed", kill_one("server"), needs="background-services"),
    Fault("API hangs 45 s", signal("server", "STOP"), 45, signal("server", "CONT")),
    Fault(
        "API answers 500 for 45 s",
        rename_table("flow_run_state", "flow_run_state_away"),
        45,
        rename_table("flow_run_state_away", "flow_run_state"),
    ),
    Fault("background services killed", kill("background-services"), needs="background-services"),
    Fault("Valkey killed", kill("valkey"), needs="valkey"),
    Fault("Valkey restarted empty", empty_valkey, needs="valkey"),
    Fault("PostgreSQL killed", kill("postgres")),
    Fault("PostgreSQL away 45 s", POSTGRES_AWAY.breaks, 45, POSTGRES_AWAY.mends),
    Fault("PostgreSQL without free connections 45 s", exhaust_connections),
    # Before the disk is full: then the node keeps PostgreSQL's files in memory.
    Fault("node restarted", restart_node),
    Fault("PostgreSQL's disk full 45 s", fill_disk, 45, free_disk),
    Fault("credential replaced", replace_credential, 0, remove_old_credential),
    Fault("Git server away 60 s", GIT_AWAY.breaks, 60, GIT_AWAY.mends),
    Fault(
        "Hamilton UI away 45 s",
        track_without_hamilton_ui,
        45,
        HAMILTON_UI_AWAY.mends,
        needs="hamilton-ui",
    ),
    Fault("flow pod deleted", delete_flow_pod(force=False)),
    Fault(
        "flow pod deleted while the API is away",
        delete_flow_pod_without_server,
        40,
        SERVER_AWAY.mends,
    ),
    Fault("flow pod deleted by force", delete_flow_pod(force=True)),
    Fault("flow pod evicted", evict_flow_pod),
    Fault("flow pod out of memory", run_out_of_memory),
    *(
        [Fault("flow pod with a wrong clock deleted", delete_flow_pod_with_wrong_clock)]
        if faketime.LIBRARY
        else []
    ),
    Fault(
        "Kubernetes API away 60 s",
        in_node(f"mv {APISERVER} /root/"),
        60,
        in_node(f"mv /root/kube-apiserver.yaml {APISERVER}"),
    ),
]
