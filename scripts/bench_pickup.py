"""Measure how quickly runs are picked up: `python -m scripts.bench_pickup --help`.

On the local profile that is up, or with `--kind` on a cluster of `make kind`. Registers a flow that
does nothing, runs it one by one and many at once, and removes it again.
"""

import shlex
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from scripts import kind, local_profile

MEASURED = (StateType.PENDING, StateType.RUNNING, StateType.COMPLETED)
ENTRYPOINT = "scripts/no_op_flow.py:no_op"


def main(
    runs: Annotated[int, typer.Option(min=2, help="Number of consecutive runs.")] = 20,
    at_once: Annotated[
        int, typer.Option(help="Number of simultaneous runs afterwards; 0 for none.")
    ] = 20,
    kind_name: Annotated[
        str, typer.Option("--kind", help="Name of the kind cluster; the local profile if omitted.")
    ] = "",
    clone: Annotated[bool, typer.Option(help="With --kind: pods clone the flow from Git.")] = True,
) -> None:
    """Print seconds from a run's creation to Pending, Running and Completed, p50 and p95.

    To compare polls, start the profile with another one: `PREFECT_WORKER_QUERY_SECONDS=10 make up`.
    """
    with _client(kind_name) as client, _deployment(client, kind_name, clone) as deployment:
        one_by_one = [_reached(client, *_run(client, deployment, 1)) for _ in range(runs)]
        for state in MEASURED:
            _print(one_by_one, state)
        if at_once:
            together = [_reached(client, run) for run in _run(client, deployment, at_once)]
            began = min(run[StateType.SCHEDULED] for run in together)
            ended = max(run[StateType.COMPLETED] for run in together)
            seconds = (ended - began).total_seconds()
            rate = 60 * at_once / seconds
            typer.echo(f"{at_once} at once: {seconds:.1f} s, {rate:.0f} runs a minute")
            _print(together, StateType.RUNNING)


@contextmanager
def _client(kind_name: str) -> Iterator[SyncPrefectClient]:
    """Yield a client, which tries again when the server is busy."""
    with tempfile.TemporaryDirectory() as home:
        if kind_name:
            try:
                kind.require_cluster(kind_name)
                server = kind.prefect_server(
                    kind.context_of(kind_name), kind.ports(kind_name)[0], Path(home)
                )
            except kind.KindError as error:
                kind.fail(error)
            settings: dict[Any, Any] = {
                PREFECT_API_URL: server.api_url,
                PREFECT_API_AUTH_STRING: server.environment["PREFECT_API_AUTH_STRING"],
            }
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
def _deployment(client: SyncPrefectClient, kind_name: str, clone: bool) -> Iterator[UUID]:
    """Register the flow for as long as it is measured."""
    root = str(local_profile.ROOT)
    pull_steps: list[dict[str, Any]] | None
    pull_steps = [{"prefect.deployments.steps.set_working_directory": {"directory": root}}]
    if kind_name and clone:
        pull_steps = client.read_deployment_by_name(kind.DEPLOYMENTS.walkthrough).pull_steps
    elif kind_name:
        pull_steps = [_written()]
    deployment = client.create_deployment(
        client.create_flow_from_name("no-op"),
        name="bench-pickup",
        work_pool_name="kubernetes" if kind_name else "local-process-pool",
        entrypoint=ENTRYPOINT,
        pull_steps=pull_steps,
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

    patience = 60 + 10 * count
    try:
        Retrying(
            retry=retry_if_result(bool), stop=stop_after_delay(patience), wait=wait_fixed(0.5)
        )(running)
    except RetryError:
        typer.echo(f"Not all runs have ended after {patience} s: see the worker's log", err=True)
        raise typer.Exit(1) from None
    runs = client.read_flow_runs(flow_run_filter=found)
    if failed := [run for run in runs if run.state is None or not run.state.is_completed()]:
        typer.echo(f"{failed[0].name}: {failed[0].state}", err=True)
        raise typer.Exit(1)
    return runs


def _reached(client: SyncPrefectClient, run: FlowRun) -> dict[StateType, datetime]:
    """Return when a run was first in each state; it was created as Scheduled."""
    reached: dict[StateType, datetime] = {}
    for state in client.read_flow_run_states(run.id):
        reached.setdefault(state.type, state.timestamp)
    return reached


def _print(runs: list[dict[StateType, datetime]], state: StateType) -> None:
    """Print how long it took from creation to a state."""
    seconds = [(run[state] - run[StateType.SCHEDULED]).total_seconds() for run in runs]
    percentiles = statistics.quantiles(seconds, n=20, method="inclusive")
    typer.echo(
        f"created to {state.title():<9} {len(runs)} runs   p50 {percentiles[9]:.1f} s"
        f"   p95 {percentiles[18]:.1f} s   max {max(seconds):.1f} s"
    )


if __name__ == "__main__":
    typer.run(main)
