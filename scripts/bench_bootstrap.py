"""Measure what a bootstrap costs that changes nothing: `python -m scripts.bench_bootstrap --help`.

Registers deployments of one repository, each with a schedule and a trigger, on a server of its own,
and applies them again. The server runs no background services, and what it uses without a request
is left out: the rest is the work for the bootstrap.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import tenacity
import typer
import yaml
from prefect.client.orchestration import PrefectClient

from scripts.local_profile import HOST
from scripts.ports import free_port
from scripts.server_requests import ALL, Requests

FLOW = "from prefect import flow\n\n@flow\ndef work():\n    pass\n"
POOL = "bench"
IDLE_SECONDS = 20
UNCHANGED = "0 created, 0 updated, 0 removed"


def main(
    deployments: Annotated[int, typer.Option(min=1, help="Number of deployments.")] = 200,
    repeat: Annotated[int, typer.Option(min=1, help="Number of measurements.")] = 3,
    database: Annotated[
        str,
        typer.Option(
            envvar="BENCH_DATABASE",
            help="URL of an empty PostgreSQL database (postgresql+asyncpg://…). Its own CPU is not "
            "measured. Without it the server uses SQLite, whose CPU is in that of the server.",
        ),
    ] = "",
) -> None:
    """Print CPU seconds of the server and of the bootstrap, and the number of requests."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_repository(folder / "repository", deployments)
        settings = {"PREFECT_API_DATABASE_CONNECTION_URL": database} if database else {}
        with serve(folder, **settings) as (process, api):
            apply(folder, api)
            apply(folder, api)  # the server has prepared its statements
            idle = idle_cores(process)
            typer.echo("server  bootstrap  requests")
            for _ in range(repeat):
                count, began = requests(api), time.monotonic()
                server, bootstrap = cpu(process), cpu_of_children()
                said = apply(folder, api)
                server = cpu(process) - server - idle * (time.monotonic() - began)
                bootstrap = cpu_of_children() - bootstrap
                if UNCHANGED not in said:
                    raise SystemExit(f"The bootstrap has changed something:\n{said}")
                count = requests(api) - count - 1  # the first reading
                typer.echo(f"{server:5.2f} s  {bootstrap:7.2f} s  {count:8}")


def write_repository(folder: Path, deployments: int) -> None:
    """Write a flows repository with a number of deployments, each with a schedule and a trigger."""
    folder.mkdir()
    trigger = {"type": "event", "expect": ["prefect.flow-run.Completed"]}
    listed: list[dict[str, Any]] = [
        {
            "name": f"work-{number}",
            "entrypoint": "work.py:work",
            "work_pool": {"name": POOL},
            "schedules": [{"interval": 3600 + number}],
            "triggers": [trigger],
        }
        for number in range(deployments)
    ]
    (folder / "work.py").write_text(FLOW)
    (folder / "prefect.yaml").write_text(yaml.safe_dump({"deployments": listed, "pull": []}))
    state = {"work_pools": [{"name": POOL, "type": "process"}]}
    (folder / "state.yaml").write_text(yaml.safe_dump(state))


@contextmanager
def serve(folder: Path, **settings: str) -> Iterator[tuple[psutil.Process, str]]:
    """Run a Prefect server; yields its process and the address of its API."""
    port = free_port()
    api = f"http://{HOST}:{port}/api"
    environment = os.environ | {
        "PREFECT_HOME": str(folder / "server"),
        "PREFECT_API_URL": "",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_METRICS_ENABLED": "true",
        **settings,
    }
    command = [sys.executable, "-m", "prefect_hamilton.server", "--no-services"]
    with (folder / "server.log").open("wb") as log:
        process = psutil.Popen(
            [*command, "--host", HOST, "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(httpx.HTTPError),
            stop=tenacity.stop_after_delay(300),
            wait=tenacity.wait_fixed(0.3),
            reraise=True,
        ):
            with attempt:
                httpx.get(f"{api}/health", timeout=5, trust_env=False).raise_for_status()
        yield process, api
    finally:
        process.terminate()
        process.wait(timeout=60)


def apply(folder: Path, api: str) -> str:
    """Run the bootstrap as its Job does, but without a clone; returns what it printed."""
    repository = folder / "repository"
    options = ["--file", str(repository / "state.yaml"), "--checkout", str(repository)]
    options += ["--deployment", "*", "--release", "bench"]
    done = subprocess.run(
        [sys.executable, "-m", "prefect_hamilton.bootstrap", "apply", *options],
        env=os.environ
        | {
            "PREFECT_HOME": str(folder / "client"),
            "PREFECT_API_URL": api,
            "FLOWS_REPOSITORY": repository.as_uri(),
            "FLOWS_REF": "main",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(done.stdout)
    return done.stdout


def requests(api: str) -> int:
    """Return how many requests the server has answered, before this one."""

    async def read() -> Requests | None:
        async with PrefectClient(api) as client:
            return await Requests.read(client)

    found = asyncio.run(read())
    return found.within[ALL] if found else 0


def idle_cores(process: psutil.Process) -> float:
    """Return how many cores the server uses while nobody asks it for anything."""
    before = cpu(process)
    time.sleep(IDLE_SECONDS)
    return (cpu(process) - before) / IDLE_SECONDS


def cpu(process: psutil.Process) -> float:
    """Return the CPU seconds that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def cpu_of_children() -> float:
    """Return the CPU seconds of the processes that this one has waited for."""
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    typer.run(main)
