"""Measure what many flow runs cost: `python -m scripts.bench_scale --help`.

On a cluster of `make kind` that has kwok (https://kwok.sigs.k8s.io) and nodes of it, labelled
`type: kwok`. Kubernetes, worker, server and PostgreSQL are real; the pods are not. For each pod
that kwok starts, this process executes a flow of one task with Prefect's engine.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn
from uuid import UUID, uuid4

import typer
from kubernetes_asyncio import client, config, watch
from prefect import flow, task
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.events import EventPage
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter
from prefect.flow_engine import run_flow_async
from prefect.logging.configuration import setup_logging
from prefect.settings import temporary_settings

from scripts import kind, node_usage
from scripts.bench_arms import cluster_settings
from scripts.server_requests import ALL, Requests

RUN_LABEL = "prefect.io/flow-run-id"
NODES = {
    "node_selector": {"type": "kwok"},
    "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
}
"""Job variables with which a pod runs on a node of kwok."""
KEPT_SECONDS = 4 * 3600
"""Time for which finished Jobs stay, so that the worker starts again with all of them."""
SUCCEEDED = "prefect.kubernetes.pod.succeeded"
"""Event with which the worker's observer reports that a pod has ended."""
WORKER = "deployment/prefect-hamilton-worker-kubernetes"
ENGINES = 10
"""Number of flow runs that this process executes at the same time."""
PAGE = 200
EVENTS_PAGE = 50
TABLES = 8
INTERVAL_SECONDS = 5
DATABASE = "statefulset/prefect-hamilton-postgres"
SIZES = """
SELECT relname, n_live_tup, pg_total_relation_size(relid) FROM pg_stat_user_tables
UNION ALL SELECT 'all', sum(n_live_tup), sum(pg_total_relation_size(relid)) FROM pg_stat_user_tables
ORDER BY 3 DESC
"""


@task
async def nothing() -> None:
    """Do nothing."""


@flow(name="scale")
async def one_task() -> None:
    """Run one task that does nothing."""
    await nothing()


def main(
    kind_name: Annotated[
        str, typer.Option("--kind", help="Name of the kind cluster.")
    ] = kind.DEFAULT_NAME,
    runs: Annotated[int, typer.Option(min=10, help="Number of flow runs, all due at once.")] = 500,
    patience: Annotated[int, typer.Option(help="Seconds after which it gives up.")] = 3600,
) -> None:
    """Print times, CPU seconds, and rows and bytes in the database per flow run.

    API requests are among them if the server serves metrics: `server.metrics: true`.
    """
    # The lines of the runs are sent to the server, and not printed.
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    setup_logging()
    with (
        tempfile.TemporaryDirectory() as home,
        temporary_settings(cluster_settings(kind_name, Path(home))),
    ):
        asyncio.run(_measure(kind.context_of(kind_name), runs, patience))


async def _measure(context: str, count: int, patience: int) -> None:
    async with get_client() as prefect, _deployment(prefect) as deployment:
        stored = _stored(context)
        answered = await Requests.read(prefect)
        before = node_usage.read(context, datetime.now(UTC))
        began, since = time.monotonic(), datetime.now(UTC)
        finished: dict[str, datetime] = {}
        engines = asyncio.create_task(_play_engines(prefect, context, deployment, finished))
        try:
            for _ in range(count):
                await prefect.create_flow_run_from_deployment(deployment)
            typer.echo(f"{count} runs created in {time.monotonic() - began:.0f} s")
            ended = asyncio.create_task(_ended(prefect, deployment, count, began + patience))
            await asyncio.wait((ended, engines), return_when=asyncio.FIRST_COMPLETED)
            found = ended.result() if ended.done() else await engines  # raises what ended it
            seconds = time.monotonic() - began
            after = node_usage.read(context, datetime.now(UTC))
            answered_after = await Requests.read(prefect)
            reported = await _reported(prefect, since)
        finally:
            engines.cancel()
        _print_runs(found, await _times(prefect, found), seconds)
        _print_lag(finished, reported)
        _print_usage(before, after, count)
        if answered and answered_after:
            _print_requests(answered_after.since(answered), count)
        _print_stored(stored, _stored(context), count)
    _restart_worker(context)


@asynccontextmanager
async def _deployment(prefect: PrefectClient) -> AsyncIterator[UUID]:
    """Register the flow for as long as it is measured."""
    deployment = await prefect.create_deployment(
        await prefect.create_flow(one_task),
        name=f"bench-scale-{uuid4().hex[:8]}",  # its runs are those of this measurement
        work_pool_name="kubernetes",
        entrypoint="scripts/bench_scale.py:one_task",
        job_variables={**NODES, "finished_job_ttl": KEPT_SECONDS},
    )
    try:
        yield deployment
    finally:
        await prefect.delete_deployment(deployment)


async def _play_engines(
    prefect: PrefectClient, context: str, deployment: UUID, finished: dict[str, datetime]
) -> NoReturn:
    """Execute the flow run of each pod of the deployment that starts.

    `finished` gets the time at which each pod ended, by its uid.
    """
    await config.load_kube_config(context=context)
    slots, started = asyncio.Semaphore(ENGINES), set[str]()  # by uid of the pod

    async def execute(run_id: str) -> None:
        async with slots:
            flow_run = await prefect.read_flow_run(UUID(run_id))
            if flow_run.deployment_id == deployment:  # others are left from before
                await run_flow_async(one_task, flow_run=flow_run, return_type="state")

    async with client.ApiClient() as api, asyncio.TaskGroup() as group:
        pods = client.CoreV1Api(api)
        while True:  # a watch ends after some minutes
            stream = watch.Watch().stream(
                pods.list_namespaced_pod, kind.NAMESPACE, label_selector=RUN_LABEL
            )
            async for event in stream:
                pod = event["object"]
                is_started = pod.status.phase in ("Running", "Succeeded")
                if is_started and pod.metadata.uid not in started:
                    started.add(pod.metadata.uid)
                    group.create_task(execute(pod.metadata.labels[RUN_LABEL]))
                if pod.status.phase == "Succeeded":
                    (container,) = pod.status.container_statuses
                    finished[pod.metadata.uid] = container.state.terminated.finished_at


async def _ended(
    prefect: PrefectClient, deployment: UUID, count: int, until: float
) -> list[FlowRun]:
    """Return the runs when all have ended."""
    of_deployment = FlowRunFilterDeploymentId(any_=[deployment])
    final = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(TERMINAL_STATES)))
    ended = FlowRunFilter(deployment_id=of_deployment, state=final)
    while await prefect.count_flow_runs(flow_run_filter=ended) < count:
        if time.monotonic() > until:
            typer.echo("Not all runs have ended in time: see the log of the worker", err=True)
            raise typer.Exit(1)
        await asyncio.sleep(INTERVAL_SECONDS)
    found: list[FlowRun] = []
    while page := await prefect.read_flow_runs(
        flow_run_filter=ended, limit=PAGE, offset=len(found)
    ):
        found += page
    return found


async def _reported(prefect: PrefectClient, since: datetime) -> dict[str, datetime]:
    """Return when the observer reported the end of each pod, by the uid of the pod."""
    occurred = EventOccurredFilter.model_validate({"since": since})
    ended = EventFilter(event=EventNameFilter(name=[SUCCEEDED]), occurred=occurred)
    page: EventPage | None = await prefect.read_events(ended, limit=EVENTS_PAGE)
    found: dict[str, datetime] = {}
    while page:
        found |= {event.resource.id.rpartition(".")[2]: event.received for event in page.events}
        page = await page.get_next_page(prefect)
    return found


async def _times(prefect: PrefectClient, runs: list[FlowRun]) -> dict[str, list[float]]:
    """Return for each state the seconds from a run's creation until it was entered first."""
    times: dict[str, list[float]] = {}
    for run in runs:
        states = await prefect.read_flow_run_states(run.id)
        first = states[0].timestamp
        for name, timestamp in {s.type.title(): s.timestamp for s in reversed(states)}.items():
            times.setdefault(name, []).append((timestamp - first).total_seconds())
    return times


def _print_runs(runs: list[FlowRun], times: dict[str, list[float]], seconds: float) -> None:
    states = Counter(run.state_name for run in runs)
    repeated = sum(1 for run in runs if run.run_count > 1)
    typer.echo(f"{len(runs)} runs in {seconds:.0f} s, {60 * len(runs) / seconds:.0f} a minute")
    typer.echo(f"  states: {dict(states)}; executed more than once: {repeated}")
    for name in ("Pending", "Running", "Completed"):
        percentiles = statistics.quantiles(times[name], n=100, method="inclusive")
        typer.echo(
            f"  created to {name:<9}  p50 {percentiles[49]:.1f} s  p95 {percentiles[94]:.1f} s"
        )


def _print_lag(finished: dict[str, datetime], reported: dict[str, datetime]) -> None:
    """Print how long after the end of a pod, a full second, the observer reported it."""
    lags = [(reported[u] - ended).total_seconds() for u, ended in finished.items() if u in reported]
    percentiles = statistics.quantiles(lags, n=100, method="inclusive")
    typer.echo(
        f"  end of a pod to its event ({len(lags)} of {len(finished)})  "
        f"p50 {percentiles[49]:.1f} s  p95 {percentiles[94]:.1f} s  max {max(lags):.1f} s"
    )


def _print_requests(answered: Requests, count: int) -> None:
    typer.echo(
        f"API requests: {answered.within[ALL] / count:.0f} a run; half of them answered within "
        f"{answered.quantile(0.5)} s, 99 % within {answered.quantile(0.99)} s"
    )


def _restart_worker(context: str) -> None:
    """Print how long a worker takes to be ready beside the finished pods, and delete their Jobs."""
    pods = kind.kubectl(context, "get", "pods", "-l", RUN_LABEL, "--output", "name").splitlines()
    kind.kubectl(context, "rollout", "restart", WORKER)
    began = time.monotonic()
    kind.kubectl(context, "rollout", "status", WORKER, "--timeout", "5m")
    seconds = time.monotonic() - began
    typer.echo(f"A new worker beside {len(pods)} flow pods is ready after {seconds:.1f} s")
    kind.kubectl(context, "delete", "jobs", "-l", RUN_LABEL, "--wait=false")


def _print_usage(before: node_usage.Usage, after: node_usage.Usage, count: int) -> None:
    seconds, used = after.since(before)
    typer.echo(f"CPU seconds a run, of {seconds:.0f} s; MB of memory before and after")
    for part, cpu in node_usage.by_size(used):
        memory = (f"{use.memory[part] / 1e6:.0f}" for use in (before, after) if part in use.memory)
        typer.echo(f"  {part:<28} {cpu / count:6.3f}   {' → '.join(memory)}")


def _stored(context: str) -> dict[str, tuple[int, int]]:
    """Return rows and bytes of all tables of Prefect's database together, and of each."""
    psql = ("psql", "-U", "postgres", "-d", "prefect", "-At", "-c")
    kind.kubectl(context, "exec", DATABASE, "--", *psql, "ANALYZE")
    lines = kind.kubectl(context, "exec", DATABASE, "--", *psql, SIZES).splitlines()
    found = {}
    for line in lines:
        name, rows, size = line.split("|")
        found[name] = int(rows), int(size)
    return found


def _print_stored(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], count: int
) -> None:
    typer.echo("Database, per run")
    for name, (rows, size) in list(after.items())[:TABLES]:
        earlier = before.get(name, (0, 0))
        kilobytes = (size - earlier[1]) / count / 1000
        typer.echo(f"  {name:<28} {(rows - earlier[0]) / count:6.1f} rows {kilobytes:6.1f} kB")


if __name__ == "__main__":
    typer.run(main)
