"""Measure how quickly the worker picks runs up: `python -m scripts.bench_pickup --help`."""

import statistics
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from scripts import demo, kind, local_profile

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def main(
    runs: Annotated[int, typer.Option(min=2, help="How many, one after the other.")] = 20,
    deployment: Annotated[
        str | None, typer.Option(help="As in `prefect deployment run`; the walkthrough if not set.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--kind", help="Name of a kind cluster (`make kind`).")
    ] = None,
) -> None:
    """Print seconds from trigger to each state: p50, p95. On the local profile, or a kind cluster.

    To compare polls, start the profile with another `PREFECT_WORKER_QUERY_SECONDS` in the work
    pool's worker: `prefect worker start` in a terminal after `eval "$(make -s env)"`.
    """
    server = _cluster(cluster) if cluster else _profile()
    deployment = deployment or (kind.DEPLOYMENTS if cluster else demo.LOCAL).walkthrough
    measured: dict[str, list[float]] = {"PENDING": [], "RUNNING": [], "COMPLETED": []}
    with server.client() as http:
        found = http.get(f"/deployments/name/{deployment}")
        if found.status_code == httpx.codes.NOT_FOUND:
            typer.echo(f"There is no deployment {deployment}: prefect deployment ls", err=True)
            raise typer.Exit(1)
        for _ in range(runs):
            for state, seconds in _one(http, found.raise_for_status().json()["id"]).items():
                measured[state].append(seconds)
    for state, values in measured.items():
        percentiles = statistics.quantiles(values, n=20, method="inclusive")
        typer.echo(
            f"trigger to {state.title():<9} {len(values)} runs   p50 {percentiles[9]:.1f} s"
            f"   p95 {percentiles[18]:.1f} s   max {max(values):.1f} s"
        )


def _profile() -> demo.Server:
    noted = local_profile.running(local_profile.state_folder())
    if noted is None:
        typer.echo("The local profile is not running: make up", err=True)
        raise typer.Exit(1)
    return demo.Server(noted.profile.api_url, {})


def _cluster(name: str) -> demo.Server:
    try:
        kind.require_cluster(name)
        with tempfile.TemporaryDirectory() as home:
            return kind.prefect_server(name, Path(home))
    except kind.KindError as error:
        kind.fail(error)


def _one(http: httpx.Client, deployment_id: str) -> dict[str, float]:
    """Trigger a run and wait for its end; returns seconds until each state."""
    response = http.post(f"/deployments/{deployment_id}/create_flow_run", json={})
    run = response.raise_for_status().json()
    created = datetime.fromisoformat(run["created"])

    def state_type() -> Any:
        return http.get(f"/flow_runs/{run['id']}").raise_for_status().json()["state_type"]

    Retrying(
        retry=retry_if_result(lambda state: state not in FINAL),
        stop=stop_after_delay(120),
        wait=wait_fixed(0.5),
    )(state_type)
    states = http.get("/flow_run_states/", params={"flow_run_id": run["id"]})
    reached: dict[str, float] = {}
    for state in states.raise_for_status().json():
        if state["type"] in ("PENDING", "RUNNING", "COMPLETED"):
            seconds = (datetime.fromisoformat(state["timestamp"]) - created).total_seconds()
            reached[state["type"]] = min(seconds, reached.get(state["type"], seconds))
    return reached


if __name__ == "__main__":
    typer.run(main)
