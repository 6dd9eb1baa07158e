"""Run the example flows on this machine and check their results (`make demo`).

Starts the local profile, triggers flow runs with the `prefect` command, waits until each has ended
and compares the outcome with the expected one.
"""

import os
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from tenacity import (
    RetryError,
    Retrying,
    retry,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_fixed,
)

from prefect_hamilton.warehouse import URL_BLOCK, URL_VARIABLE, WarehouseError
from scripts import local, local_profile, outcomes
from scripts.local_profile import Profile, ProfileError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console = Console(highlight=False, soft_wrap=True, width=110)


@dataclass(frozen=True)
class Deployments:
    """The deployments that the demo runs, as `flow/deployment`."""

    etl: str
    absenteeism: str
    walkthrough: str
    after_etl: str
    on_failure: str


LOCAL = Deployments(
    etl="Enterprise Data Pipeline/production-etl",
    absenteeism="hamilton-absenteeism-prediction/absenteeism-local",
    walkthrough="ui-walkthrough-retries/walkthrough",
    after_etl="Metrics Quality Report/after-production-etl",
    on_failure="Failed Run Report/on-failure",
)


@dataclass(frozen=True)
class Server:
    """A Prefect server: address, environment of `prefect` commands, user and password."""

    api_url: str
    environment: Mapping[str, str]
    auth: tuple[str, str] | None = None

    def client(self) -> httpx.Client:
        """Return a client of its API."""
        return httpx.Client(base_url=self.api_url, auth=self.auth, timeout=30, trust_env=False)


HAMILTON_USER = "prefect"
TABLES = ("warehouse.prod.metrics", "warehouse.staging.metrics", "warehouse.test.metrics")
"""The tables that the three successful pipeline runs load, all from the same source."""


@dataclass
class Run:
    """A flow run with its expected and its actual outcome."""

    label: str
    deployment: str
    options: list[str] = field(default_factory=list)
    state: str = "Completed"
    attempts: int = 1
    """Attempts of the task that was tried most often; 1 for a run without tasks."""
    started_by: str | None = None
    """Id of the flow run whose end starts this run; None if the demo triggers it."""
    leaves: outcomes.Outcome | None = None
    """The results that it must leave behind."""
    problems: list[str] = field(default_factory=list)
    """Missing or wrong results, one sentence each."""
    id: str | None = None
    actual_state: str = ""
    actual_attempts: int = 0
    seconds: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether the run has reached a final state."""
        return self.actual_state in ("Completed", "Failed", "Crashed", "Cancelled")

    @property
    def as_expected(self) -> bool:
        """Whether state, attempts and what the run left behind are those expected."""
        states = (self.actual_state, self.actual_attempts) == (self.state, self.attempts)
        return states and not self.problems


def planned(deployments: Deployments) -> list[Run]:
    """Return the runs that the demo triggers."""
    return [
        Run("default", deployments.etl, leaves=outcomes.Pipeline(TABLES[0])),
        Run(
            "overridden",
            deployments.etl,
            ["--param", "batch_size=1000", "--param", f"target_table={TABLES[1]}"],
            leaves=outcomes.Pipeline(TABLES[1]),
        ),
        Run(
            "JSON",
            deployments.etl,
            ["--params", f'{{"batch_size": 200, "target_table": "{TABLES[2]}"}}'],
            leaves=outcomes.Pipeline(TABLES[2]),
        ),
        Run(
            "invalid URL",
            deployments.etl,
            ["--param", "source_url=invalid://url"],
            "Failed",
            attempts=4,
        ),
        Run("retries", deployments.walkthrough, ["--param", "should_fail=false"], attempts=2),
        Run(
            "retries, none left",
            deployments.walkthrough,
            ["--param", "should_fail=true"],
            "Failed",
            3,
        ),
        Run("model", deployments.absenteeism, leaves=outcomes.Model()),
    ]


@app.command()
def main(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the profile running.")] = False,
    port: local.Port = 4200,
    api_port: local.ApiPort = None,
    hamilton_port: local.HamiltonPort = 8241,
    timeout: Annotated[float, typer.Option(min=1, help="Timeout for all runs in seconds.")] = 240.0,
) -> None:
    """Run the example flows on this machine; exit with status 1 if a result is not as expected."""
    profile = Profile(
        state=local_profile.state_folder(),
        port=port,
        api_port=api_port or port,
        hamilton_port=hamilton_port,
    )
    began = time.monotonic()
    was_up = local_profile.manager(profile.state) is not None
    try:
        profile = local.bring_up(profile, timeout=180).profile
        console.print(f"Set up after {time.monotonic() - began:.0f} s\n")
        server = Server(profile.api_url, profile.environment(), profile.auth)
        runs = trigger(server, LOCAL)
        watch(server, runs, timeout)
        with outcomes.opened(warehouse_url(server)) as query:
            fulfilled = judge(server, runs, query, {"x-api-user": HAMILTON_USER})
    except ProfileError as error:
        local.fail(error)
    except WarehouseError as error:
        local.fail(ProfileError(str(error)))
    except httpx.HTTPError as error:
        local.fail(ProfileError(f"The Prefect server stopped responding ({error}): run make logs"))
    finally:
        if not (keep or was_up):
            local_profile.end(profile.state)
    total = f"after {time.monotonic() - began:.0f} s"
    if keep or was_up:
        show_links(profile, runs)
        console.print("The local profile is still running. To stop it, run make down")
    else:
        console.print("The local profile has stopped. To keep it running, use make demo KEEP=1")
    if not fulfilled:
        console.print(f"[red]✗ Some results differ from what was expected[/] ({total}).")
        raise typer.Exit(1)
    console.print(f"[green]✓ All results are as expected[/] ({total}).")


def trigger(server: Server, deployments: Deployments) -> list[Run]:
    """Trigger the planned runs with `prefect deployment run`. Raises ProfileError."""
    runs: list[Run] = []
    stamp = time.strftime("%H%M%S")
    with server.client() as http:
        for number, run in enumerate(planned(deployments), 1):
            runs.append(run)
            command = ["prefect", "deployment", "run", run.deployment, *run.options]
            console.print(f"[dim]$[/] {shlex.join(command)}")
            name = f"demo-{stamp}-{number}"
            done = subprocess.run(
                [*command, "--flow-run-name", name],
                env=dict(server.environment),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise ProfileError(f"{(done.stderr or done.stdout).strip()[-500:]}")
            run.id = _filter(http, flow_runs={"name": {"any_": [name]}})[0]["id"]
            if run.deployment == deployments.etl and run.state == "Completed":
                report = outcomes.Report("metrics-quality-report", (f"{outcomes.ROWS:,} rows",))
                label = f"after {run.label}"
                runs.append(Run(label, deployments.after_etl, started_by=run.id, leaves=report))
            if run.state == "Failed":
                report = outcomes.Report("failed-run-report", ("Failed", name))
                label = f"report: {run.label}"
                runs.append(Run(label, deployments.on_failure, started_by=run.id, leaves=report))
    console.print()
    return runs


def watch(server: Server, runs: list[Run], timeout: float) -> None:
    """Show the runs until all have ended, for `timeout` seconds at most."""
    with server.client() as http:
        live = Live(console=console, auto_refresh=False, transient=True)
        known: dict[str, str] = {}

        def look() -> bool:
            _update(http, runs)
            if console.is_terminal:
                live.update(_table(runs), refresh=True)
            else:
                for run in runs:
                    if run.actual_state and known.get(run.label) != run.actual_state:
                        known[run.label] = run.actual_state
                        console.print(f"{run.label:<28} {run.actual_state}")
            return all(run.ended for run in runs)

        with live if console.is_terminal else nullcontext():
            try:
                Retrying(
                    retry=retry_if_result(lambda ended: not ended),
                    stop=stop_after_delay(timeout),
                    wait=wait_fixed(1),
                )(look)
            except RetryError:
                console.print(f"[red]Not all runs have ended after {timeout:g} s.[/]")


def judge(
    server: Server, runs: list[Run], query: outcomes.Query, hamilton_headers: dict[str, str]
) -> bool:
    """Look up the results of the runs and print them; returns whether all are as expected."""
    with server.client() as http:
        evidence = outcomes.Evidence(http, query, hamilton_headers)
        for run in runs:
            if run.leaves and run.actual_state == "Completed" and run.id:
                run.problems.extend(run.leaves.problems(evidence, run.id))
        for label in _started_more_than_once(http, runs):
            next(run for run in runs if run.label == label).problems.append("it started twice")
    console.print(_table(runs))
    for run in runs:
        for problem in run.problems:
            console.print(f"[red]{run.label}:[/] {escape(problem)}")
    table = Table("Warehouse table", "Rows", title_justify="left")
    for name, count in outcomes.row_counts(query).items():
        table.add_row(name, f"{count:,}")
    console.print(table)
    return all(run.as_expected for run in runs)


def warehouse_url(server: Server) -> str:
    """Return the address of the warehouse that the worker's flow runs load into."""
    if url := os.environ.get(URL_VARIABLE):
        return url
    with server.client() as http:
        path = f"/block_types/slug/secret/block_documents/name/{URL_BLOCK}"
        block = http.get(path, params={"include_secrets": True}).raise_for_status().json()
    return str(block["data"]["value"])


def show_links(profile: Profile, runs: list[Run]) -> None:
    """Print links to the most interesting views."""
    by_label = {run.label: run for run in runs}
    views = {
        "Dashboard": "/dashboard",
        "Run with retries": f"/runs/flow-run/{by_label['retries'].id}",
        "Failed run": f"/runs/flow-run/{by_label['retries, none left'].id}",
        "Model and DAG pictures": f"/runs/flow-run/{by_label['model'].id}",
        "Artifacts": "/artifacts",
        "Event feed": "/events",
        "Automations": "/automations",
    }
    for label, path in views.items():
        console.print(f"{label:<23} {profile.ui_url}{path}")
    console.print(f"{'Password of Prefect':<23} make login")
    console.print(f"{'Hamilton UI':<23} {profile.hamilton_url}   user {HAMILTON_USER}")


def _update(http: httpx.Client, runs: list[Run]) -> None:
    """Update the runs from the server."""
    for run in runs:
        if run.id is None and run.started_by is not None:
            started = _started_by(http, run)
            run.id = started[0]["id"] if started else None
    ids = [run.id for run in runs if run.id]
    found = {each["id"]: each for each in _filter(http, flow_runs={"id": {"any_": ids}})}
    tasks = _post(http, "/task_runs/filter", flow_runs={"id": {"any_": ids}})
    for run in runs:
        if run.id in found:
            run.actual_state = found[run.id]["state"]["name"]
            run.seconds = found[run.id]["estimated_run_time"]
            run.actual_attempts = max(
                (task["run_count"] for task in tasks if task["flow_run_id"] == run.id),
                default=found[run.id]["run_count"],
            )


def _started_by(http: httpx.Client, run: Run) -> list[dict[str, Any]]:
    _, name = run.deployment.split("/")
    return [
        each
        for each in _filter(http, deployments={"name": {"any_": [name]}})
        if run.started_by in each["parameters"].values()
    ]


def _started_more_than_once(http: httpx.Client, runs: list[Run]) -> list[str]:
    counts = Counter({run.label: len(_started_by(http, run)) for run in runs if run.started_by})
    return [label for label, count in counts.items() if count > 1]


def _filter(http: httpx.Client, **filters: Any) -> list[dict[str, Any]]:
    return _post(http, "/flow_runs/filter", **filters, sort="START_TIME_DESC")


@retry(
    # A busy server is late, or says that its database is.
    retry=retry_if_exception_type(httpx.HTTPError),
    stop=stop_after_delay(60),
    wait=wait_fixed(1),
    reraise=True,
)
def _post(http: httpx.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.post(path, json=body).raise_for_status().json()
    return found


def _table(runs: list[Run]) -> Table:
    table = Table("Run", "Deployment", "Expected", "Actual", "Attempts", "Seconds")
    for run in runs:
        colour = "yellow" if not run.ended else "green" if run.as_expected else "red"
        attempts = (
            str(run.actual_attempts)
            if run.actual_attempts == run.attempts or not run.ended
            else f"{run.actual_attempts}, expected {run.attempts}"
        )
        table.add_row(
            run.label,
            run.deployment.split("/")[1],
            run.state,
            f"[{colour}]{run.actual_state or '…'}[/]",
            attempts,
            f"{run.seconds:.0f}",
        )
    return table


if __name__ == "__main__":
    app(prog_name="python -m scripts.demo")
