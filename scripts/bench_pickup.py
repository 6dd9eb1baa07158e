"""Measure how quickly the local worker picks runs up: `python -m scripts.bench_pickup --help`."""

import statistics
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import typer
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from scripts import local_profile

MEASURED = (StateType.PENDING, StateType.RUNNING)


def main(
    runs: Annotated[int, typer.Option(min=2, help="How many, one after the other.")] = 20,
    deployment: Annotated[
        str, typer.Option(help="As in `prefect deployment run`.")
    ] = "ui-walkthrough-retries/walkthrough",
) -> None:
    """Print seconds from trigger to Pending and to Running on the profile that is up, p50 and p95.

    To compare polls, start the profile with another one: `PREFECT_WORKER_QUERY_SECONDS=10 make up`.
    """
    noted = local_profile.running(local_profile.state_folder())
    if noted is None:
        typer.echo("The local profile is not running: make up", err=True)
        raise typer.Exit(1)
    measured: dict[StateType, list[float]] = {state: [] for state in MEASURED}
    # Prefect's client tries again when SQLite is busy.
    with (
        temporary_settings({PREFECT_API_URL: noted.profile.api_url}),
        get_client(sync_client=True) as client,
    ):
        try:
            deployment_id = client.read_deployment_by_name(deployment).id
        except ObjectNotFound:
            typer.echo(f"There is no deployment {deployment}: prefect deployment ls", err=True)
            raise typer.Exit(1) from None
        for _ in range(runs):
            for state, seconds in _one(client, deployment_id).items():
                measured[state].append(seconds)
    for state, values in measured.items():
        percentiles = statistics.quantiles(values, n=20, method="inclusive")
        typer.echo(
            f"trigger to {state.title():<8} {len(values)} runs   p50 {percentiles[9]:.1f} s"
            f"   p95 {percentiles[18]:.1f} s   max {max(values):.1f} s"
        )


def _one(client: SyncPrefectClient, deployment_id: UUID) -> dict[StateType, float]:
    """Trigger a run and wait for its end; returns seconds until it was Pending and Running."""
    created = datetime.now(UTC)
    run = client.create_flow_run_from_deployment(deployment_id)

    def ended() -> bool:
        state = client.read_flow_run(run.id).state
        return state is not None and state.is_final()

    Retrying(
        retry=retry_if_result(lambda ended: not ended),
        stop=stop_after_delay(120),
        wait=wait_fixed(0.5),
    )(ended)
    reached: dict[StateType, float] = {}
    for state in client.read_flow_run_states(run.id):
        if state.type in MEASURED:
            seconds = (state.timestamp - created).total_seconds()
            reached[state.type] = min(seconds, reached.get(state.type, seconds))
    return reached


if __name__ == "__main__":
    typer.run(main)
