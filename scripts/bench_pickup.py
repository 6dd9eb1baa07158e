"""Measure how quickly runs are picked up: `python -m scripts.bench_pickup --help`.

On the local profile that is up, or with `--kind` on a cluster of `make kind`. Runs a flow one by
one and many at once. With `--kind`, every run in a standby pod is followed by one that must have a
new pod, and by one of Prefect's own charts if these are given, so that they are measured side by
side.
"""

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType

from prefect_hamilton.worker.standby import IDLE, LABEL
from scripts import bench_arms, kind, node_usage
from scripts.bench_arms import Arm

MEASURED = (StateType.PENDING, StateType.RUNNING, StateType.COMPLETED)
IDLE_SECONDS = 60

Reached = dict[StateType, datetime]


def main(
    runs: Annotated[int, typer.Option(min=2, help="Number of consecutive runs.")] = 20,
    at_once: Annotated[
        int, typer.Option(max=200, help="Number of simultaneous runs afterwards; 0 or 1 for none.")
    ] = 20,
    kind_name: Annotated[
        str, typer.Option("--kind", help="Name of the kind cluster; the local profile if omitted.")
    ] = "",
    deployment: Annotated[
        str,
        typer.Option(help="flow/deployment to run, in place of a flow that does nothing."),
    ] = "",
    clone: Annotated[bool, typer.Option(help="With --kind: pods clone the flow from Git.")] = True,
    gap: Annotated[float, typer.Option(help="Seconds between two consecutive runs.")] = 0,
    ready: Annotated[
        int,
        typer.Option(help="With --kind: the standby pods that are ready before many runs at once."),
    ] = 0,
    account: Annotated[
        bool, typer.Option(help="With --kind: CPU seconds by what used them; takes a minute more.")
    ] = False,
    known_charts: Annotated[
        Path | None,
        typer.Option(help="With --kind: folder of prefect-server and prefect-worker to compare."),
    ] = None,
    known_image: Annotated[
        str, typer.Option(help="Their image, with tag: it has Prefect and prefect-kubernetes.")
    ] = "prefecthq/prefect:3-latest-kubernetes",
) -> None:
    """Print seconds from a run's creation to Pending, Running and Completed, p50 and p95.

    To compare polls, start the profile with another one: `PREFECT_WORKER_QUERY_SECONDS=10 make up`.
    """
    if known_charts and not kind_name:
        raise typer.BadParameter("It needs a cluster: give --kind.", param_hint="--known-charts")
    if ":" not in known_image:
        raise typer.BadParameter("Give the tag, too: name:tag.", param_hint="--known-image")
    context = kind.context_of(kind_name) if kind_name else ""
    with ExitStack() as stack:
        client = stack.enter_context(bench_arms.connected(kind_name))
        arms = _arms(stack, client, kind_name, deployment, clone)
        if known_charts:
            known = bench_arms.of_known_chart(kind_name, known_charts, known_image)
            try:
                arms["known chart"] = stack.enter_context(known)
            except kind.KindError as error:
                kind.fail(error)
        idle = _idle(context) if context and account else {}
        _one_by_one(arms, runs, gap)
        for name, arm in arms.items() if at_once > 1 else ():
            if context and name == bench_arms.STANDBY_PODS:
                _await_standby_pods(context, ready)
            before = _usage(context) if context and account else None
            _at_once(name, arm, at_once)
            if before:
                _print_usage(before, _usage(context), idle, at_once)


def _arms(
    stack: ExitStack, client: SyncPrefectClient, kind_name: str, deployment: str, clone: bool
) -> dict[str, Arm]:
    """Return what is compared on the installation, in this order."""
    if deployment:
        return bench_arms.of_deployment(client, kind_name, deployment)
    return stack.enter_context(bench_arms.of_no_op(client, kind_name, clone))


def _one_by_one(arms: Mapping[str, Arm], runs: int, gap: float) -> None:
    """Run each arm in turn."""
    reached: dict[str, list[Reached]] = {name: [] for name in arms}
    for _ in range(runs):
        for name, arm in arms.items():
            time.sleep(gap)
            reached[name] += [_reached(arm, *arm.complete(1))]
    for name in arms:
        typer.echo(f"{name}, one by one")
        for state in MEASURED:
            _print(reached[name], state)


def _at_once(name: str, arm: Arm, count: int) -> None:
    runs = [_reached(arm, run) for run in arm.complete(count)]
    began = min(run[StateType.SCHEDULED] for run in runs)
    ended = max(run[StateType.COMPLETED] for run in runs)
    seconds = (ended - began).total_seconds()
    rate = 60 * count / seconds
    typer.echo(f"{name}, {count} at once: {seconds:.1f} s, {rate:.0f} runs a minute")
    _print(runs, StateType.RUNNING)


def _await_standby_pods(context: str, count: int) -> None:
    """Wait until as many standby pods are ready: the worker replaces them after the last run."""
    idle = ("--selector", f"{LABEL}={IDLE}", "--field-selector", "status.phase=Running")

    def are_missing() -> bool:
        return len(kind.kubectl(context, "get", "pods", *idle, "--output", "name").split()) < count

    bench_arms.wait_while(are_missing, 60 + 10 * count, f"There are no {count} standby pods ready")


def _usage(context: str) -> node_usage.Usage:
    return node_usage.read(context, datetime.now(UTC))


def _idle(context: str) -> node_usage.Seconds:
    """Print and return the CPU seconds that each part uses in a second without runs."""
    before = _usage(context)
    time.sleep(IDLE_SECONDS)
    seconds, used = _usage(context).since(before)
    typer.echo(f"idle for {seconds:.0f} s, CPU milliseconds a second")
    for part, cpu in node_usage.by_size(used):
        typer.echo(f"  {part:<28} {1000 * cpu / seconds:6.0f}")
    return {part: cpu / seconds for part, cpu in used.items()}


def _print_usage(
    before: node_usage.Usage, after: node_usage.Usage, idle: node_usage.Seconds, runs: int
) -> None:
    """Print the CPU seconds of each run, without what the parts use anyway."""
    seconds, used = after.since(before)
    each = {part: (cpu - idle.get(part, 0) * seconds) / runs for part, cpu in used.items()}
    typer.echo(f"  CPU seconds a run, beyond idle: {sum(each.values()):.2f}")
    for part, cpu in node_usage.by_size(each):
        typer.echo(f"    {part:<28} {cpu:6.2f}")


def _reached(arm: Arm, run: FlowRun) -> Reached:
    """Return when a run was first in each state; it was created as Scheduled."""
    reached: Reached = {}
    for state in arm.client.read_flow_run_states(run.id):
        reached.setdefault(state.type, state.timestamp)
    return reached


def _print(runs: list[Reached], state: StateType) -> None:
    """Print how long it took from creation to a state."""
    seconds = [(run[state] - run[StateType.SCHEDULED]).total_seconds() for run in runs]
    percentiles = statistics.quantiles(seconds, n=20, method="inclusive")
    typer.echo(
        f"  created to {state.title():<9} {len(runs)} runs   p50 {percentiles[9]:.2f} s"
        f"   p95 {percentiles[18]:.2f} s   max {max(seconds):.2f} s"
    )


if __name__ == "__main__":
    typer.run(main)
