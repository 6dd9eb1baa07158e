"""Measure how soon the end of a pod is noticed: `python -m scripts.bench_supervision --help`.

On a cluster of `make kind`, for flow runs in standby pods and in new ones, one after the other.
"""

import statistics
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelling

from scripts import bench_arms, kind
from scripts.bench_arms import Arm

_wait_while = partial(
    bench_arms.wait_while, patience=300, what="The flow run has not gone on", interval=0.1
)


def main(
    kind_name: Annotated[str, typer.Option("--kind", help="Name of the kind cluster.")],
    times: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 5,
) -> None:
    """Print the seconds from SIGTERM to Scheduled, kill -9 to Crashed, Cancelling to its end."""
    with (
        bench_arms.connected(kind_name) as client,
        bench_arms.of_no_op(client, kind_name, clone=True) as arms,
    ):
        cluster = _Cluster(client, kind_name)
        measured = {
            "SIGTERM to Scheduled": cluster.rescheduled,
            "kill -9 to Crashed": cluster.crashed,
            "Cancelling to the end of the pod": cluster.cancelled,
        }
        try:
            for what, measure in measured.items():
                for pods, arm in arms.items():
                    _print(f"{what}, {pods}", [measure(arm) for _ in range(times)])
        except kind.KindError as error:
            kind.fail(error)


def _print(what: str, seconds: list[float]) -> None:
    p50, longest = statistics.median(seconds), max(seconds)
    typer.echo(f"{what}: {len(seconds)} runs   p50 {p50:.2f} s   max {longest:.2f} s")


class _Cluster:
    """Starts flow runs and ends their pods."""

    def __init__(self, client: SyncPrefectClient, kind_name: str) -> None:
        self._client = client
        self._context = kind.context_of(kind_name)
        self._node = f"{kind_name}-control-plane"

    def rescheduled(self, arm: Arm) -> float:
        """Delete the pod; returns the seconds until its flow run is Scheduled again."""
        run = self._running(arm)
        began = datetime.now(UTC)
        self._pod(run, "delete", "--wait=false")
        seconds = self._until(run, StateType.SCHEDULED, began)
        self._end(run)
        return seconds

    def crashed(self, arm: Arm) -> float:
        """Kill the processes of the pod; returns the seconds until its flow run is Crashed."""
        run = self._running(arm)
        path = "jsonpath={.items[0].status.containerStatuses[0].containerID}"
        container = self._pod(run, "get", "--output", path).rpartition("/")[2]
        find = f"grep -ls {container} /proc/[0-9]*/cgroup | cut -d/ -f3"
        processes = self._on_node("sh", "-c", find).split()
        began = datetime.now(UTC)
        self._on_node("kill", "-9", *processes)
        return self._until(run, StateType.CRASHED, began)

    def cancelled(self, arm: Arm) -> float:
        """Cancel the flow run; returns the seconds until its pod has ended."""
        run = self._running(arm)
        began = datetime.now(UTC)
        self._client.set_flow_run_state(run.id, Cancelling())
        running = ("--field-selector", "status.phase=Running", "--output", "name")
        _wait_while(lambda: bool(self._pod(run, "get", *running)))
        return (datetime.now(UTC) - began).total_seconds()

    def _running(self, arm: Arm) -> FlowRun:
        run = arm.create(seconds=600)
        _wait_while(lambda: not self._states(run)[-1].is_running())
        return run

    def _until(self, run: FlowRun, state: StateType, began: datetime) -> float:
        """Return the seconds until the flow run is in the state, by the clock of the server."""

        def reached() -> list[datetime]:
            each = ((found.type, found.timestamp) for found in self._states(run))
            return [at for type_, at in each if type_ is state and at > began]

        _wait_while(lambda: not reached())
        return (reached()[0] - began).total_seconds()

    def _end(self, run: FlowRun) -> None:
        _wait_while(lambda: not self._states(run)[-1].is_running())
        self._client.set_flow_run_state(run.id, Cancelling())
        _wait_while(lambda: not self._states(run)[-1].is_cancelled())

    def _states(self, run: FlowRun) -> list[State]:
        return self._client.read_flow_run_states(run.id)

    def _pod(self, run: FlowRun, command: str, *options: str) -> str:
        selector = ("--selector", f"prefect.io/flow-run-id={run.id}")
        return kind.kubectl(self._context, command, "pod", *selector, *options)

    def _on_node(self, *command: str) -> str:
        return kind.run("docker", "exec", self._node, *command)


if __name__ == "__main__":
    typer.run(main)
