"""The ways to run a flow that benchmarks compare, each called an arm.

An arm is a deployment of a server with the job variables of its flow runs.
"""

import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import typer
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from scripts import kind, known_chart, local_profile

ENTRYPOINT = "scripts/no_op_flow.py:no_op"
GIT_CLONE = "prefect.deployments.steps.git_clone"
KUBERNETES_POOL = "kubernetes"
LOCAL_POOL = "local-process-pool"
STANDBY_PODS = "standby pods"
OWN_POD = {"labels": {"prefect-hamilton/bench": "own-pod"}}
"""Job variables with which no standby pod can serve a run."""


@dataclass(frozen=True)
class Arm:
    """A deployment and the job variables of its flow runs."""

    client: SyncPrefectClient
    deployment: UUID
    job_variables: dict[str, Any] = field(default_factory=dict)

    def create(self, **parameters: Any) -> FlowRun:
        """Create a flow run that is due now."""
        return self.client.create_flow_run_from_deployment(
            self.deployment, parameters=parameters, job_variables=self.job_variables
        )

    def complete(self, count: int) -> list[FlowRun]:
        """Create flow runs, all at once, and return them when they have completed."""
        found = FlowRunFilter(id=FlowRunFilterId(any_=[self.create().id for _ in range(count)]))

        def running() -> bool:
            runs = self.client.read_flow_runs(flow_run_filter=found)
            return any(run.state is None or not run.state.is_final() for run in runs)

        wait_while(running, 120 + 10 * count, "Not all runs have ended")
        runs = self.client.read_flow_runs(flow_run_filter=found)
        if failed := [run for run in runs if run.state is None or not run.state.is_completed()]:
            typer.echo(f"{failed[0].name}: {failed[0].state}", err=True)
            raise typer.Exit(1)
        return runs


@contextmanager
def of_no_op(client: SyncPrefectClient, kind_name: str, clone: bool) -> Iterator[dict[str, Arm]]:
    """Yield the arms of the flow that does nothing, registered until the end."""
    pull_steps = [_directory()]
    if kind_name:
        pull_steps = _clone(client) if clone else [_written()]
    with _registered(client, KUBERNETES_POOL if kind_name else LOCAL_POOL, pull_steps) as found:
        yield _arms(client, kind_name, found)


def of_deployment(client: SyncPrefectClient, kind_name: str, name: str) -> dict[str, Arm]:
    """Return the arms of a deployment that is registered; exits with status 1 if there is none."""
    try:
        return _arms(client, kind_name, client.read_deployment_by_name(name).id)
    except (ObjectNotFound, ValueError):
        typer.echo(f"There is no deployment {name}: give it as flow/deployment", err=True)
        raise typer.Exit(1) from None


@contextmanager
def of_known_chart(kind_name: str, charts: Path, image: str) -> Iterator[Arm]:
    """Yield the arm of Prefect's own charts. Its flow is not cloned. Raises KindError."""
    with known_chart.installed(kind_name, charts, image) as url:
        patience = known_chart.TIMEOUT_SECONDS
        wait_while(lambda: not known_chart.has_pool(url), patience, "Their work pool is missing")
        with (
            temporary_settings({PREFECT_API_URL: url}, restore_defaults={PREFECT_API_AUTH_STRING}),
            get_client(sync_client=True) as client,
            _registered(client, known_chart.POOL, [_written()]) as deployment,
        ):
            yield Arm(client, deployment, {"image": image, "namespace": known_chart.NAMESPACE})


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


def _arms(client: SyncPrefectClient, kind_name: str, deployment: UUID) -> dict[str, Arm]:
    """Return the arms of a deployment: on a cluster, one for each kind of pods."""
    pods: dict[str, dict[str, Any]] = {"processes": {}}
    if kind_name:
        pods = {STANDBY_PODS: {}, "new pods": OWN_POD}
    return {name: Arm(client, deployment, variables) for name, variables in pods.items()}


@contextmanager
def _registered(
    client: SyncPrefectClient, pool: str, pull_steps: list[dict[str, Any]]
) -> Iterator[UUID]:
    deployment = client.create_deployment(
        client.create_flow_from_name("no-op"),
        name="bench",
        work_pool_name=pool,
        entrypoint=ENTRYPOINT,
        pull_steps=pull_steps,
    )
    try:
        yield deployment
    finally:
        client.delete_deployment(deployment)


def _directory() -> dict[str, Any]:
    root = str(local_profile.ROOT)
    return {"prefect.deployments.steps.set_working_directory": {"directory": root}}


def _clone(client: SyncPrefectClient) -> list[dict[str, Any]]:
    """Return the pull steps of an example flow, with the folder of the benchmark's flow."""
    steps = client.read_deployment_by_name(kind.DEPLOYMENTS.walkthrough).pull_steps or []
    for step in steps:
        # A repository of flows has fewer files than this one.
        step[GIT_CLONE]["directories"] = [ENTRYPOINT.partition("/")[0]]
    return steps


def _written() -> dict[str, Any]:
    """Return a pull step that needs no Git, to measure a run whose code is in the image."""
    source = (local_profile.ROOT / "scripts" / "no_op_flow.py").read_text()
    code = (
        "import pathlib; pathlib.Path('scripts').mkdir(); "
        f"pathlib.Path('scripts/no_op_flow.py').write_text({source!r})"
    )
    script = f"python -c {shlex.quote(code)}"
    return {"prefect.deployments.steps.run_shell_script": {"script": script}}
