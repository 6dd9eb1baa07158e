"""Each alert fires by its real cause and resolves by the cure, in a real Alertmanager.

Every `for` and window of a rate is shortened in the cluster, thresholds by the chart's values.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import uuid4

import pytest

from scripts import kind
from tests.clusters import RELEASE, WALKTHROUGH
from tests.monitoring.conftest import (
    ETL,
    Expected,
    Monitored,
    Runs,
    cancelled,
    eat_memory,
    no_pod_fits,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("runs", "short_rules"),
]

SIXTY_MEGABYTES = """
export REDISCLI_AUTH="$VALKEY_PASSWORD"
for key in 1 2 3 4 5 6; do head -c 10000000 /dev/zero | valkey-cli -x SET filler:$key; done
"""
LESS = 'REDISCLI_AUTH="$VALKEY_PASSWORD" valkey-cli DEL filler:1 filler:2 filler:3'
PAUSE = 'REDISCLI_AUTH="$VALKEY_PASSWORD" valkey-cli CLIENT PAUSE 25000 ALL'
LOCKED_EVENTS = "BEGIN; LOCK TABLE events; SELECT pg_sleep(600)"
LONG_TRANSACTION = "BEGIN; SELECT pg_sleep(600)"
MANY_CONNECTIONS = """
used="SELECT round(0.7 * current_setting('max_connections')::int) - count(datname)"
for _ in $(seq $(psql -U postgres -tAc "$used FROM pg_stat_activity")); do
  psql -U postgres -c 'SELECT pg_sleep(600)' &
done
wait
"""
"""As many as make seven tenths of all, with those that there are."""
END_THEM = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE query LIKE '%SELECT pg_sleep(600)' AND pid <> pg_backend_pid()
"""


def test_runs_that_wait(cluster: Monitored, runs: Runs) -> None:
    """One has no worker, one a pod that fits on no node."""
    # It is late since the suite began.
    cancelled(cluster, runs.late)
    waiting: list[str] = []

    def limit(number: int) -> None:
        body = {"concurrency_limit": number}
        cluster.api.patch("/work_pools/kubernetes", json=body).raise_for_status()

    def slots(change: str) -> None:
        cluster.post(f"/v2/concurrency_limits/{change}", names=["warehouse-writes"], slots=1)

    def cause() -> None:
        limit(1)
        slots("increment")
        waiting.append(cluster.start("waits/late"))
        waiting.append(cluster.start(WALKTHROUGH, job_variables=no_pod_fits()))
        cluster.wait_for_state(waiting[-1], "Pending", "InfrastructurePending")
        waiting.append(cluster.start(WALKTHROUGH))  # late, as the pool is full

    def cure() -> None:
        limit(20)
        slots("decrement")
        for run in waiting:
            cancelled(cluster, run)
            cluster.kubectl("delete", "job", f"--selector=prefect.io/flow-run-id={run}")

    cluster.provoke(
        cause,
        cure,
        Expected("A run in a work pool without a worker", "PrefectRunsLate"),
        Expected("A pod that fits on no node", "PrefectRunsStuckPending"),
        Expected("As many runs as the work pool's limit, and one more", "PrefectWorkPoolFull"),
        Expected("Every slot of a concurrency limit is held", "PrefectSlotsExhausted"),
    )


def test_runs_that_go_wrong(cluster: Monitored) -> None:
    """The cure is that no further run goes wrong."""

    def cause() -> None:
        cluster.scale("deploy/ui", 0)
        pods = ("pod", "--selector=app.kubernetes.io/component=hamilton-ui")
        cluster.kubectl("wait", *pods, "--for=delete", "--timeout=60s")
        cluster.start(ETL)
        cluster.start(WALKTHROUGH, should_fail=True)
        eat_memory(cluster)

    memory = (("diagnosis", "OOMKilled"),)
    cluster.provoke(
        cause,
        lambda: cluster.scale("deploy/ui", 1),
        Expected("A run fails", "PrefectRunsFailing", (("flow", "ui-walkthrough-retries"),)),
        Expected(
            "The receiver of messages about failed runs is away", "PrefectAutomationActionFailing"
        ),
        Expected("A flow pod is killed for its memory", "PrefectPodsFailing", memory),
        Expected("A flow pod is killed for its memory", "PrefectRunsCrashed"),
        Expected("Hamilton UI scaled to 0 during a run", "PrefectTrackingFailing"),
    )


def test_no_worker(cluster: Monitored) -> None:
    of_the_pool = (("work_pool", "kubernetes"),)
    cluster.provoke(
        lambda: cluster.scale("deploy/worker-kubernetes", 0),
        lambda: cluster.scale("deploy/worker-kubernetes", 1),
        Expected("Worker scaled to 0", "PrefectWorkPoolNotReady", of_the_pool),
    )


def test_no_server(cluster: Monitored) -> None:
    cluster.provoke(
        lambda: cluster.scale("deploy/server", 0),
        lambda: cluster.scale("deploy/server", 1),
        Expected("Server scaled to 0", "PrefectServerDown"),
        Expected("Server scaled to 0", "PrefectMetricsStale"),
    )


def test_no_valkey(cluster: Monitored) -> None:
    cluster.provoke(
        lambda: cluster.scale("sts/valkey", 0),
        lambda: cluster.scale("sts/valkey", 1),
        Expected("Valkey scaled to 0", "PrefectValkeyDown"),
    )


def test_much_data_in_valkey(cluster: Monitored) -> None:
    inside = ("exec", f"sts/{RELEASE}-valkey", "--container=valkey", "--", "sh", "-c")
    cluster.provoke(
        partial(cluster.kubectl, *inside, SIXTY_MEGABYTES),
        partial(cluster.kubectl, *inside, LESS),
        Expected("Data take half of Valkey's memory", "PrefectValkeyMemoryHigh"),
    )


def test_valkey_that_does_not_answer(cluster: Monitored) -> None:
    """What happens meanwhile reaches the services and the exporter when it answers again."""
    later = datetime.now(UTC) + timedelta(days=1)
    valkey = ("exec", f"sts/{RELEASE}-valkey", "--container=valkey", "--", "sh", "-c")

    def change_state() -> None:
        state = {
            "type": "SCHEDULED",
            "state_details": {"scheduled_time": later.isoformat()},
        }
        flow = cluster.post("/flows/filter", limit=1)[0]["id"]
        cluster.api.post("/flow_runs/", json={"flow_id": flow, "state": state}).raise_for_status()

    def cause() -> None:
        cluster.kubectl(*valkey, PAUSE)
        change_state()

    cluster.provoke(
        cause,
        change_state,
        Expected("Valkey does not answer for 25 s", "PrefectEventsDelayed"),
        Expected(
            "Valkey does not answer for 25 s",
            "PrefectServicesLate",
            (("docket_task", "schedule_recent_deployments"),),
        ),
    )


def test_messages_that_nobody_reads(cluster: Monitored) -> None:
    """The server stores no event meanwhile, and reads no further ones."""
    events = [
        {
            "occurred": datetime.now(UTC).isoformat(),
            "event": "example.counted",
            "resource": {"prefect.resource.id": f"example.{number}"},
            "id": str(uuid4()),
        }
        for number in range(300)
    ]

    def cause() -> None:
        cluster.api.post("/events", json=events).raise_for_status()

    with in_postgres(cluster, "psql", "-U", "postgres", "-d", "prefect", "-c", LOCKED_EVENTS):
        cluster.provoke(
            cause,
            lambda: end_sessions(cluster),
            Expected(
                "A transaction locks the table of events",
                "PrefectValkeyBacklog",
                (("stream", "events"), ("group", "event-persister")),
            ),
        )


def test_no_postgresql(cluster: Monitored) -> None:
    """The server is not ready without it."""
    server = (("deployment", f"{RELEASE}-server"),)
    cluster.provoke(
        lambda: cluster.scale("sts/postgres", 0),
        lambda: cluster.scale("sts/postgres", 1),
        Expected("PostgreSQL scaled to 0", "PrefectPostgresDown"),
        Expected("PostgreSQL scaled to 0", "PrefectComponentUnavailable", server),
        Expected("PostgreSQL scaled to 0", "PrefectServerErrors"),
    )
    kind.wait_until_ready(cluster.context, timeout=180)


class CronJob:
    """A CronJob of the release that runs each minute."""

    def __init__(self, cluster: Monitored, component: str) -> None:
        self._cluster, self.name = cluster, f"{RELEASE}-{component}"
        spec = cluster.get("cronjob", self.name)["spec"]
        (self._container,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        self._schedule = spec["schedule"]

    def fail(self) -> None:
        # Without attempts that come later and later.
        self._run("* * * * *", ["false"], backoffLimit=0)

    def succeed(self) -> None:
        self._run("* * * * *", self._container.get("command"))

    def restore(self) -> None:
        """Restore it; deletes the Jobs that failed."""
        self._run(self._schedule, self._container.get("command"))
        for job in self._cluster.get("jobs")["items"]:
            owners = [owner["name"] for owner in job["metadata"].get("ownerReferences", [])]
            if owners == [self.name] and job["status"].get("failed"):
                self._cluster.kubectl("delete", "job", job["metadata"]["name"])

    def _run(self, schedule: str, command: list[str] | None, **settings: int) -> None:
        containers = [{"name": self._container["name"], "command": command}]
        job = {"spec": {**settings, "template": {"spec": {"containers": containers}}}}
        patch = json.dumps({"spec": {"schedule": schedule, "jobTemplate": job}})
        self._cluster.kubectl("patch", "cronjob", self.name, "-p", patch)


def test_jobs_that_fail(cluster: Monitored) -> None:
    """Those of both CronJobs, each minute, and one that a person has created."""
    job = f"{RELEASE}-broken"
    of_cron = [CronJob(cluster, component) for component in ("ui-retention", "bootstrap")]

    def cause() -> None:
        for each in of_cron:
            each.fail()
        cluster.kubectl("create", "job", job, f"--from=cronjob/{of_cron[0].name}")
        # The Jobs of a CronJob have another alert.
        not_its = [{"op": "remove", "path": "/metadata/ownerReferences"}]
        cluster.kubectl("patch", "job", job, "--type=json", "-p", json.dumps(not_its))

    def cure() -> None:
        for each in of_cron:
            each.succeed()
        cluster.kubectl("delete", "job", job)

    cluster.provoke(
        cause,
        cure,
        Expected("A Job fails at all its attempts", "PrefectJobFailed", (("job_name", job),)),
        Expected("The retention fails", "PrefectRetentionFailing"),
        Expected("The bootstrap of `bootstrap.schedule` fails", "PrefectBootstrapFailing"),
    )
    for each in of_cron:
        each.restore()


@contextmanager
def in_postgres(cluster: Monitored, *command: str) -> Iterator[None]:
    """Run a command in the pod of PostgreSQL until the block ends."""
    cluster.kubectl("rollout", "status", f"sts/{RELEASE}-postgres", "--timeout=180s")
    kubectl = ("kubectl", "--namespace", cluster.namespace, "exec", f"sts/{RELEASE}-postgres", "--")
    with subprocess.Popen(
        [*kubectl, *command],
        env=cluster.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as session:
        try:
            yield
        finally:
            session.terminate()


def end_sessions(cluster: Monitored) -> None:
    """End the sessions of this file."""
    pod = ("exec", f"sts/{RELEASE}-postgres", "--")
    cluster.kubectl(*pod, "psql", "-U", "postgres", "-c", END_THEM)


def test_a_long_transaction(cluster: Monitored) -> None:
    with in_postgres(cluster, "psql", "-U", "postgres", "-c", LONG_TRANSACTION):
        cluster.provoke(
            lambda: None,
            lambda: end_sessions(cluster),
            Expected("A transaction stays open", "PrefectPostgresTransactionLong"),
        )


def test_the_scheduler_cannot_read_schedules(cluster: Monitored) -> None:
    cluster.provoke(
        partial(cluster.rename_table, "deployment_schedule", "away"),
        partial(cluster.rename_table, "away", "deployment_schedule"),
        Expected("The scheduler cannot read the schedules", "PrefectSchedulerStalled"),
    )


def test_many_connections(cluster: Monitored) -> None:
    with in_postgres(cluster, "sh", "-c", MANY_CONNECTIONS):
        cluster.provoke(
            lambda: None,
            lambda: end_sessions(cluster),
            Expected("Sessions of PostgreSQL stay open", "PrefectPostgresConnectionsHigh"),
        )


def test_no_job_can_be_created(cluster: Monitored) -> None:
    """A quota refuses the Jobs of runs, which crash."""

    def cause() -> None:
        cluster.kubectl("create", "quota", "no-jobs", "--hard=count/jobs.batch=0")
        cluster.start(WALKTHROUGH)

    of_the_pool = (("work_pool", "kubernetes"),)
    cluster.provoke(
        cause,
        lambda: cluster.kubectl("delete", "quota", "no-jobs"),
        Expected("A quota refuses Jobs", "PrefectSubmissionsFailing", of_the_pool),
    )


def test_no_success(cluster: Monitored) -> None:
    """The deployment succeeds, then no more, and then again."""

    def succeed() -> None:
        cluster.wait_for_state(cluster.start(WALKTHROUGH), "Completed")

    succeed()
    cluster.provoke(
        lambda: None,
        succeed,
        Expected(
            "A deployment does not succeed for 60 s",
            "PrefectDeploymentNotSucceeding",
            (("flow", "ui-walkthrough-retries"),),
        ),
    )


def test_a_full_volume(cluster: Monitored) -> None:
    folder = cluster.put_postgres_on_small_disk()
    kind.wait_until_ready(cluster.context, timeout=180)
    cluster.provoke(
        # PostgreSQL goes on with the rest.
        partial(
            cluster.in_node,
            f"head -c $(($(df --output=avail {folder} | tail -1) - 30720))K /dev/zero"
            f" > {folder}/full",
        ),
        partial(cluster.in_node, f"rm {folder}/full"),
        *(
            Expected(
                "The volume of PostgreSQL is full except for 30 MB",
                alert,
                (("persistentvolumeclaim", f"data-{RELEASE}-postgres-0"),),
            )
            for alert in ("PrefectVolumeFilling", "PrefectVolumeGrowing")
        ),
    )
