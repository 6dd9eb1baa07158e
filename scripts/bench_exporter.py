"""Measure what the exporter of metrics costs: `python -m scripts.bench_exporter --help`.

Gives it events as the stream does, as JSON, of runs of many deployments. No server is needed.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import uuid4

import orjson
import psutil
import typer
from prefect.events import Event
from prometheus_client import CollectorRegistry, generate_latest

from prefect_hamilton.exporter import families
from prefect_hamilton.exporter.counting import Counting
from prefect_hamilton.exporter.series import Series

STATES = ("Scheduled", "Pending", "Running", "Completed")


def main(
    deployments: Annotated[int, typer.Option(help="Number of deployments.")] = 10_000,
    runs: Annotated[int, typer.Option(help="Number of runs of each.")] = 1,
) -> None:
    """Print CPU per event, memory before and after, and the time and size of a scrape."""
    series = Series(families.ALL, born_seconds=0)
    registry = CollectorRegistry()
    registry.register(series)
    counting = Counting(series)
    typer.echo(f"at the start: {_megabytes():.0f} MB")
    count = cpu = 0.0
    for _ in range(runs):
        for number in range(deployments):
            for message in _events(number):
                began = time.process_time()
                counting.count(Event.model_validate(orjson.loads(message)["event"]))
                cpu += time.process_time() - began
                count += 1
    typer.echo(f"{1000 * cpu / count:.2f} ms CPU per event; then {_megabytes():.0f} MB")
    generate_latest(registry)
    began = time.process_time()
    text = generate_latest(registry)
    seconds = time.process_time() - began
    typer.echo(
        f"a scrape: {seconds:.2f} s CPU, {len(text) / 1e6:.1f} MB; then {_megabytes():.0f} MB"
    )


def _events(deployment: int) -> Iterator[bytes]:
    """Yield the messages of one run."""
    run, start = uuid4(), datetime.now(UTC)
    related = [_resource(kind, f"{kind}-{deployment}") for kind in ("flow", "deployment")]
    related += [_resource(kind, kind) for kind in ("work-pool", "work-queue")]
    for second, state in enumerate(STATES):
        resource = {
            "prefect.resource.id": f"prefect.flow-run.{run}",
            "prefect.resource.name": "a-name",
            "prefect.run-count": "1",
            "prefect.state-name": state,
            "prefect.state-type": state.upper(),
        }
        event: dict[str, Any] = {
            "id": str(uuid4()),
            "occurred": (start + timedelta(seconds=second)).isoformat(),
            "event": f"prefect.flow-run.{state}",
            "resource": resource,
            "related": related,
            "payload": {},
        }
        yield orjson.dumps({"type": "event", "event": event})


def _resource(kind: str, name: str) -> dict[str, str]:
    return {
        "prefect.resource.id": f"prefect.{kind}.{uuid4()}",
        "prefect.resource.role": kind,
        "prefect.resource.name": name,
    }


def _megabytes() -> float:
    rss: int = psutil.Process().memory_info().rss
    return rss / 1e6


if __name__ == "__main__":
    typer.run(main)
