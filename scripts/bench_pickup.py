"""Measure how quickly runs are picked up: `python -m scripts.bench_pickup --help`.

On the local profile that is up, or with `--kind` on a cluster of `make kind`. Registers a flow that
does nothing, runs it one by one and many at once, and removes it again. With `--kind`, every run in
a standby pod is followed by one that must have a new pod, so that both are measured side by side.
"""

import shlex
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from prefect_hamilton.worker.standby import IDLE, LABEL
from scripts import kind, local_profile, node_usage

MEASURED = (StateType.PENDING, StateType.RUNNING, StateType.COMPLETED)
ENTRYPOINT = "scripts/no_op_flow.py:no_op"
GIT_CLONE = "prefect.deployments.steps.git_clone"
OWN_POD = {"labels": {"prefect-hamilton/bench": "own-pod"}}
"""Job variables with which no standby pod can serve a run."""
STANDBY_PODS = "standby pods"
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
    clone: Annotated[bool, typer.Option(help="With --kind: pods clone the flow from Git.")] = True,
    gap: Annotated[float, typer.Option(help="Seconds between two consecutive runs.")] = 0,
    ready: Annotated[
        int,
        typer.Option(help="With --kind: the standby pods that are ready before many runs at once."),
    ] = 0,
    account: Annotated[
        bool, typer.Option(help="With --kind: CPU seconds by what used them; takes a minute more.")
    ] = False,
) -> None:
    """Print seconds from a run's creation to Pending, Running and Completed, p50 and p95.

    To compare polls, start the profile with another one: `PREFECT_WORKER_QUERY_SECONDS=10 make up`.
    """
    context = kind.context_of(kind_name) if kind_name else ""
    with connected(kind_name) as client, registered(client, kind_name, clone) as deployments:
        idle = _idle(context) if context and account else {}
        _one_by_one(client, deployments, runs, gap)
        for name, deployment in deployments.items() if at_once > 1 else ():
            if context and name == STANDBY_PODS:
                _await_standby_pods(context, ready)
            before = _usage(context) if context and account else None
            _at_once(client, name, deployment, at_once)
            if before:
                _print_usage(before, _usage(context), idle, at_once)


def _one_by_one(
    client: SyncPrefectClient, deployments: Mapping[str, UUID], runs: int, gap: float
) -> None:
    """Run each deployment in turn."""
    reached: dict[str, list[Reached]] = {name: [] for name in deployments}
    for _ in range(runs):
        for name, deployment in deployments.items():
            time.sleep(gap)
            reached[name] += [_reached(client, *_run(client, deployment, 1))]
    for name in deployments:
        typer.echo(f"{name}, one by one")
        for state in MEASURED:
            _print(reached[name], state)


def _at_once(client: SyncPrefectClient, name: str, deployment: UUID, count: int) -> None:
    runs = [_reached(client, run) for run in _run(client, deployment, count)]
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

    wait_while(are_missing, 60 + 10 * count, f"There are no {count} standby pods ready")


def wait_while(
    holds: Callable[[], bool], patience: float, what: str, interval: float = 0.5
) -> None:
    """Wait while a condition holds; exits with status 1 and says what after some seconds."""
    try:
        Retrying(
            retry=retry_if_result(bool),
            stop=stop_after_delay(patience),
            wait=wait_fixed(interval),
        )(holds)
    except RetryError:
        typer.echo(f"{what} after {patience:g} s: see the worker's log", err=True)
        raise typer.Exit(1) from None


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


def cluster_settings(kind_name: str, home: Path) -> dict[Any, Any]:
    """Return what a client of the server on a kind cluster needs; exits with the reason if none."""
    try:
        kind.require_cluster(kind_name)
        port, _ = kind.ports(kind_name)
        server = kind.prefect_server(kind.context_of(kind_name), port, home)
    except kind.KindError as error:
        kind.fail(error)
    return {
        PREFECT_API_URL: server.api_url,
        PREFECT_API_AUTH_STRING: server.environment["PREFECT_API_AUTH_STRING"],
    }


@contextmanager
def connected(kind_name: str) -> Iterator[SyncPrefectClient]:
    """Yield a client, which tries again when the server is busy."""
    with tempfile.TemporaryDirectory() as home:
        if kind_name:
            settings = cluster_settings(kind_name, Path(home))
        else:
            noted = local_profile.running(local_profile.state_folder())
            if noted is None:
                typer.echo("The local profile is not running: run make up", err=True)
                raise typer.Exit(1)
            settings = {
                PREFECT_API_URL: noted.profile.api_url,
                PREFECT_API_AUTH_STRING: noted.profile.auth_string,
            }
        with temporary_settings(settings), get_client(sync_client=True) as client:
            yield client


@contextmanager
def registered(client: SyncPrefectClient, kind_name: str, clone: bool) -> Iterator[dict[str, UUID]]:
    """Register the flow for every kind of pod; on the local profile, once."""
    pods = {STANDBY_PODS: {}, "new pods": OWN_POD} if kind_name else {"processes": {}}
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(_deployment(client, kind_name, clone, name, variables))
            for name, variables in pods.items()
        }


@contextmanager
def _deployment(
    client: SyncPrefectClient, kind_name: str, clone: bool, name: str, variables: dict[str, Any]
) -> Iterator[UUID]:
    """Register the flow for as long as it is measured."""
    root = str(local_profile.ROOT)
    pull_steps: list[dict[str, Any]] | None
    pull_steps = [{"prefect.deployments.steps.set_working_directory": {"directory": root}}]
    if kind_name and clone:
        pull_steps = client.read_deployment_by_name(kind.DEPLOYMENTS.walkthrough).pull_steps
        # A repository of flows has fewer files than this one.
        for step in pull_steps or []:
            step[GIT_CLONE]["directories"] = [ENTRYPOINT.partition("/")[0]]
    elif kind_name:
        pull_steps = [_written()]
    deployment = client.create_deployment(
        client.create_flow_from_name("no-op"),
        name=f"bench-{name.replace(' ', '-')}",
        work_pool_name="kubernetes" if kind_name else "local-process-pool",
        entrypoint=ENTRYPOINT,
        pull_steps=pull_steps,
        job_variables=variables,
    )
    try:
        yield deployment
    finally:
        client.delete_deployment(deployment)


def _written() -> dict[str, Any]:
    """Return a pull step that needs no Git, to measure a run whose code is in the image."""
    source = (local_profile.ROOT / "scripts" / "no_op_flow.py").read_text()
    code = (
        "import pathlib; pathlib.Path('scripts').mkdir(); "
        f"pathlib.Path('scripts/no_op_flow.py').write_text({source!r})"
    )
    script = f"python -c {shlex.quote(code)}"
    return {"prefect.deployments.steps.run_shell_script": {"script": script}}


def _run(client: SyncPrefectClient, deployment: UUID, count: int) -> list[FlowRun]:
    """Create runs, all at once, and return them when they have ended."""
    created = [client.create_flow_run_from_deployment(deployment).id for _ in range(count)]
    found = FlowRunFilter(id=FlowRunFilterId(any_=created))

    def running() -> bool:
        runs = client.read_flow_runs(flow_run_filter=found)
        return any(run.state is None or not run.state.is_final() for run in runs)

    wait_while(running, 60 + 10 * count, "Not all runs have ended")
    runs = client.read_flow_runs(flow_run_filter=found)
    if failed := [run for run in runs if run.state is None or not run.state.is_completed()]:
        typer.echo(f"{failed[0].name}: {failed[0].state}", err=True)
        raise typer.Exit(1)
    return runs


def _reached(client: SyncPrefectClient, run: FlowRun) -> Reached:
    """Return when a run was first in each state; it was created as Scheduled."""
    reached: Reached = {}
    for state in client.read_flow_run_states(run.id):
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
