"""The local profile: Prefect server, worker and Hamilton UI on this machine (`make up`)."""

import os
import shlex
import subprocess
from collections.abc import Container
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
import yaml
from rich.console import Console
from rich.markup import escape
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_fixed,
)

from prefect_hamilton import _headers
from scripts import local_profile
from scripts.local_profile import OWN, WORK_POOL, FlowsFolder, Profile, ProfileError, Running

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
console = Console(highlight=False, soft_wrap=True)

Port = Annotated[int, typer.Option(min=1, max=65535, help="Port of the Prefect UI and API.")]
ApiPort = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="Port of the API, if not that of the UI."),
]
HamiltonPort = Annotated[int, typer.Option(min=1, max=65535, help="Port of the Hamilton UI.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait until all processes respond.")]
SkipLateAfter = Annotated[
    int,
    typer.Option(
        min=0,
        help="Seconds after which the worker skips a late run of a schedule, for example after the "
        "profile was down; 0: never.",
    ),
]
Flows = Annotated[
    Path | None,
    typer.Option(help="Folder of your flows repository; the example flows if omitted."),
]

APPLY = ["python", "-m", "prefect_hamilton.bootstrap", "apply"]
RELEASE = "local"
"""Name of the bootstrap's record of what it created; the record of a folder has its path, too."""

SHOWN = ("updated ", "removed ", "ending ", "kept ")
"""What the lines of the bootstrap begin with that `up` prints."""

RECOVERY_SECONDS = 120
"""Time that a restarted worker waits for the server, in seconds."""

ORPHAN_SECONDS = 10
"""Time that flow runs have to end after their worker was killed."""

PAGE = 200
"""Maximum number of flow runs that the server returns per request."""


class _NotYet(Exception):  # noqa: N818  # a step of waiting, not an error
    """Something does not respond yet; the message names it."""


@app.callback()
def main() -> None:
    """Run a Prefect server, a worker and the Hamilton UI on this machine; data is in .state."""


@app.command()
def up(
    port: Port = 4200,
    api_port: ApiPort = None,
    hamilton_port: HamiltonPort = 8241,
    timeout: Timeout = 180.0,
    flows: Flows = None,
    skip_late_after: SkipLateAfter = 0,
) -> None:
    """Start the profile, apply the desired state and register the local deployments.

    What an earlier `up` created and the folder's files no longer name is deleted. If the profile is
    already running, only register the deployments and apply the state.
    """
    profile = Profile(
        state=local_profile.state_folder(),
        port=port,
        api_port=api_port or port,
        hamilton_port=hamilton_port,
        skip_late_after=skip_late_after,
    )
    try:
        folder = FlowsFolder.at(flows) if flows else OWN
        bring_up(profile, timeout, folder)
    except ProfileError as error:
        fail(error)
    except httpx.HTTPError as error:
        fail(
            ProfileError(
                f"The Prefect server stopped responding ({error}): run make logs, then make up."
            )
        )


@app.command()
def down() -> None:
    """Stop all processes of the profile; stored data is kept."""
    state = local_profile.state_folder()
    with console.status("Stopping the local profile"):
        count = local_profile.end(state)
    console.print(
        f"The local profile has stopped; its data is in {_short(state)}."
        if count
        else "The local profile is not running."
    )


@app.command()
def status() -> None:
    """Show what is running, and its address; exit with status 1 unless everything responds."""
    state = local_profile.state_folder()
    noted = local_profile.running(state)
    alive = local_profile.manager(state) is not None
    if noted is None or not alive:
        left = len(local_profile.processes(state))
        note = f" ({left} processes are left over: run make down)" if left else ""
        console.print(f"The local profile is not running{note}. To start it, run make up.")
        raise typer.Exit(1)
    answers = True
    for name, probe, place in (
        ("Prefect server", _server, noted.profile.ui_url),
        ("Worker", _worker, f"pool {WORK_POOL}"),
        ("Hamilton UI", _hamilton, noted.profile.hamilton_url),
    ):
        try:
            probe(noted.profile)
            console.print(f"[green]up[/]    {name:<15} {place}")
        except _NotYet as reason:
            answers = False
            console.print(f"[red]down[/]  {name:<15} {place} ({reason})")
        except ProfileError as error:
            fail(error)
    if not answers:
        console.print(f"Log: {_short(noted.profile.log)}")
        raise typer.Exit(1)


@app.command()
def logs(
    process: Annotated[
        str, typer.Argument(help="server, worker or hamilton-ui; all if omitted.")
    ] = "",
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="Number of lines to show.")
    ] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the output.")] = False,
) -> None:
    """Show the output of the processes of the profile."""
    log = Profile(state=local_profile.state_folder()).log
    if not log.exists():
        fail(ProfileError(f"There is no log at {_short(log)} yet: run make up."))
    tail = [
        "tail",
        "-n",
        str(lines if not process else "+1"),
        *(["-F"] if follow else []),
        str(log),
    ]
    if not process:
        os.execvp(tail[0], tail)  # noqa: S606  # no shell: a fixed program with a list of words
    grep = f"grep --line-buffered -F {shlex.quote(f' {process}.1 ')}"
    keep = "cat" if follow else f"tail -n {lines}"
    os.execvp("sh", ["sh", "-c", f"{shlex.join(tail)} | {grep} | {keep}"])  # noqa: S606


@app.command(hidden=True)
def recover() -> None:
    """Reschedule runs that a killed worker had taken up and not started; for the Procfile."""
    state = local_profile.state_folder()
    noted = local_profile.running(state)
    if noted is None:
        return
    try:
        _await(lambda: _server(noted.profile), RECOVERY_SECONDS, state)
        # Orphans end by themselves, or report how they crashed.
        orphans = local_profile.await_flow_runs(state, ORPHAN_SECONDS)
        # No worker is there to take a run up since then.
        count = restart_interrupted_runs(noted.profile, datetime.now(UTC), leave=orphans)
    except (ProfileError, httpx.HTTPError) as error:
        fail(
            ProfileError(
                f"Interrupted flow runs were not rescheduled ({error}): run make down, then "
                "make up."
            )
        )
    console.print(f"{count} interrupted flow runs are rescheduled.")


@app.command()
def login() -> None:
    """Print the password of the Prefect UI; a browser asks for it once."""
    state = local_profile.state_folder()
    noted = local_profile.running(state)
    profile = noted.profile if noted else Profile(state=state)
    try:
        local_profile.prepare(state)
        auth_string = profile.auth_string
    except ProfileError as error:
        fail(error)
    console.print(f"Prefect   {profile.ui_url}")
    console.print(f"Password  {auth_string}   (the whole text, in the one field)", markup=False)


@app.command()
def env(port: Port = 4200, api_port: ApiPort = None, hamilton_port: HamiltonPort = 8241) -> None:
    """Print shell settings for a terminal: eval "$(make -s env)"."""
    state = local_profile.state_folder()
    noted = local_profile.running(state)
    profile = (
        noted.profile
        if noted
        else Profile(state=state, port=port, api_port=api_port or port, hamilton_port=hamilton_port)
    )
    try:
        local_profile.prepare(state)
        settings = profile.settings() | (noted.hamilton if noted else {})
    except ProfileError as error:
        fail(error)
    print(local_profile.shell_lines(settings))


def bring_up(profile: Profile, timeout: float, flows: FlowsFolder = OWN) -> Running:
    """Start the profile and wait until it is ready. Raises ProfileError; prints progress."""
    state = profile.state
    names = local_deployments(flows)
    local_profile.prepare(state)
    noted = local_profile.running(state)
    if noted and local_profile.manager(state):
        console.print("The local profile is already running.")
        applied = [*register(noted.profile, names, flows), *apply(noted.profile)]
        console.print(f"[green]✓[/] Registered {_counted(names)} of {flows.path}.")
        show(applied)
        links(noted.profile)
        return noted
    if left := local_profile.end(state):
        console.print(
            f"The previous profile did not stop properly: stopped {left} of its processes."
        )
    elif noted:
        console.print("The previous profile did not stop properly; none of its processes is left.")
    local_profile.check_ports(profile)

    began = datetime.now(UTC)
    noted = local_profile.start(profile)
    try:
        with console.status("Starting") as spinner:

            def step(probe: Any, label: str) -> None:
                spinner.update(f"Waiting for {label}")
                _await(lambda: probe(profile), timeout, state)

            step(_server, "the Prefect server")
            step(_hamilton, "the Hamilton UI")
            # The Procfile's bootstrap must not meet those that follow.
            step(partial(_applied, after=began), "the desired state")
            spinner.update("Registering the deployments")
            applied = register(profile, names, flows)
            spinner.update("Applying the desired state")
            applied += apply(profile)
            step(_worker, "the worker")
            interrupted = restart_interrupted_runs(profile, began)
    except (ProfileError, KeyboardInterrupt):
        local_profile.end(state)
        raise
    noted = noted.model_copy(update={"hamilton": local_profile.tracking(_pool(profile))})
    noted.save()
    console.print(
        f"[green]✓[/] The local profile is up, with {_counted(names)} in the work pool {WORK_POOL}."
    )
    show([*local_profile.said(profile.log, "worker"), *applied])
    if interrupted:
        console.print(f"  {interrupted} interrupted flow runs were rescheduled.")
    links(profile)
    console.print(
        '\nNext     eval "$(make -s env)"   then any Prefect command, for example\n'
        f"         prefect deployment run {shlex.quote(_full_name(profile, names[0]))}\n"
        "         make logs   make status   make down"
    )
    return noted


def links(profile: Profile) -> None:
    """Print the addresses of both UIs."""
    console.print(
        f"\nPrefect  {profile.ui_url}"
        + (f"   API {profile.api_url}" if profile.split else "")
        + "   password: make login"
    )
    console.print(f"Hamilton {profile.hamilton_url}   user prefect")


def local_deployments(flows: FlowsFolder = OWN) -> list[str]:
    """Return the names of the deployments in the local pool. Raises ProfileError."""
    path = flows.path / "prefect.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = [
            deployment["name"]
            for deployment in content["deployments"]
            if deployment["work_pool"]["name"] == WORK_POOL
        ]
    except (OSError, yaml.YAMLError, LookupError, TypeError) as error:
        raise ProfileError(f"{path} does not define deployments: {error!r}.") from error
    if not names:
        raise ProfileError(f"{path} has no deployment in the work pool {WORK_POOL}: add one.")
    return names


def register(profile: Profile, names: list[str], flows: FlowsFolder = OWN) -> list[str]:
    """Register deployments and the state files of their folder, in the environment of the folder.

    Returns the output of the bootstrap, one line per object. What it created from this folder's
    files before, and they no longer name, is deleted; what is of other folders stays.
    """
    state = flows.local_state if flows != OWN and flows.local_state.exists() else os.devnull
    options = ["--file", str(state), "--checkout", str(flows.path), *_kept(profile)]
    options += ["--release", f"{RELEASE} {flows.path}"]
    options += [word for name in names for word in ("--deployment", name)]
    # No deployment of the local pool has a pull step: these name only the source of the objects.
    source = {"FLOWS_REPOSITORY": flows.path.as_uri(), "FLOWS_REF": "HEAD", "FLOWS_PATH": "."}
    return _run(profile, [*APPLY, *options], flows, **source).splitlines()


def apply(profile: Profile) -> list[str]:
    """Apply the desired state of the profile as the Procfile does; returns lines as `register`."""
    files = ["--add", "scripts/local.yaml"]
    if OWN.local_state.exists():
        files += ["--add", str(OWN.local_state)]
    return _run(profile, [*APPLY, *files, *_kept(profile), "--release", RELEASE]).splitlines()


def _kept(profile: Profile) -> list[str]:
    """Return the options that keep manual changes."""
    return ["--record", str(profile.record)]


def show(lines: list[str]) -> None:
    """Print the lines of the bootstrap about objects that changed or are kept, without duplicates.

    The bootstrap runs several times: before the worker starts, for the deployments, and afterwards.
    """
    worth = [line.strip() for line in lines if line.lstrip().startswith(SHOWN)]
    for line in dict.fromkeys(worth):
        console.print(f"  {line}", markup=False)


def restart_interrupted_runs(profile: Profile, before: datetime, leave: Container[str] = ()) -> int:
    """Reschedule runs of the pool that were in progress when the profile or its worker stopped.

    The runs to `leave` still have processes. Of the others the processes no longer exist, and
    nothing else would change their state. Loads are idempotent, so a second start neither loses
    nor duplicates rows. A run in state Cancelling is cancelled; one that would have been retried
    by its process is due when its flow wanted.
    """
    with profile.client() as http:
        count = 0
        for run in _runs_under_way(http):
            was = run["state"]
            if datetime.fromisoformat(was["timestamp"]) >= before or run["id"] in leave:
                continue
            due = datetime.now(UTC).isoformat()
            if was["type"] == "SCHEDULED":
                due = was["state_details"]["scheduled_time"]
            state = (
                {"type": "CANCELLED", "message": "The local profile stopped."}
                if was["type"] == "CANCELLING"
                else {
                    "type": "SCHEDULED",
                    "name": "AwaitingRetry",
                    "message": "The local profile or its worker stopped while this run was in "
                    "progress.",
                    "state_details": {"scheduled_time": due},
                }
            )
            answer = http.post(
                f"/flow_runs/{run['id']}/set_state",
                json={"state": state},
                headers={_headers.EXPECTED_STATE: was["id"]},
            )
            is_accepted = answer.raise_for_status().json()["status"] == "ACCEPT"
            count += is_accepted and state["type"] == "SCHEDULED"
    return count


def _runs_under_way(http: httpx.Client) -> list[dict[str, Any]]:
    """Return all of them before any is changed: a change would shift the following pages."""
    kinds = ["RUNNING", "PENDING", "CANCELLING"]
    query: dict[str, Any] = {
        "work_pools": {"name": {"any_": [WORK_POOL]}},
        "flow_runs": {
            "state": {
                "operator": "or_",
                "type": {"any_": kinds},
                "name": {"any_": ["AwaitingRetry"]},
            }
        },
        "sort": "ID_DESC",
        "limit": PAGE,
    }
    found: list[dict[str, Any]] = []
    while True:
        answer = http.post("/flow_runs/filter", json={**query, "offset": len(found)})
        page = answer.raise_for_status().json()
        found += page
        if len(page) < PAGE:
            return [
                run
                for run in found
                if run["state"]["type"] in kinds
                or run["empirical_policy"]["retry_type"] == "in_process"
            ]


def fail(error: ProfileError) -> NoReturn:
    """Print the error in one line and exit with status 1."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]{escape(str(error))}[/]")
    raise typer.Exit(1)


def _await(probe: Any, timeout: float, state: Path) -> None:
    def attempt() -> None:
        if local_profile.manager(state) is None:
            raise ProfileError(_ended(state))
        probe()

    try:
        Retrying(
            retry=retry_if_exception_type(_NotYet),
            stop=stop_after_delay(timeout),
            wait=wait_fixed(0.25),
            reraise=True,
        )(attempt)
    except _NotYet as reason:
        raise ProfileError(f"After {timeout:g} s {reason}.\n{_tail(state)}") from reason


def _ended(state: Path) -> str:
    return f"The local profile stopped while it was starting.\n{_tail(state)}"


def _tail(state: Path) -> str:
    log = Profile(state=state).log
    return f"{local_profile.last_lines(log)}\nThe complete log: {_short(log)}"


def _get(url: str, what: str) -> httpx.Response:
    try:
        response = httpx.get(url, timeout=5, trust_env=False, verify=local_profile.tls())
        response.raise_for_status()
    except httpx.HTTPError as error:
        raise _NotYet(f"{what} does not respond") from error
    return response


def _server(profile: Profile) -> None:
    _get(f"{profile.api_url}/health", "the Prefect server")
    if profile.split:
        _get(f"{profile.ui_url}/ui-settings", "the Prefect UI")


def _hamilton(profile: Profile) -> None:
    _get(f"{profile.hamilton_url}/api/ping", "the Hamilton UI")


def _applied(profile: Profile, after: datetime) -> None:
    try:
        applied_at = profile.record.stat().st_mtime
    except FileNotFoundError:
        applied_at = 0
    if applied_at < after.timestamp():
        raise _NotYet("the desired state is not applied")


def _pool(profile: Profile) -> dict[str, Any]:
    try:
        with profile.client(timeout=5) as http:
            answer = http.get(f"/work_pools/{WORK_POOL}").raise_for_status()
    except httpx.HTTPError as error:
        raise _NotYet(f"the work pool {WORK_POOL} does not respond") from error
    pool: dict[str, Any] = answer.json()
    return pool


def _worker(profile: Profile) -> None:
    if _pool(profile)["status"] != "READY":
        raise _NotYet("no worker is online")


def _counted(names: list[str]) -> str:
    return f"{len(names)} deployment{'' if len(names) == 1 else 's'}"


def _full_name(profile: Profile, name: str) -> str:
    """Return `flow/deployment`, as `prefect deployment run` expects it."""
    with profile.client() as http:
        query = {"deployments": {"name": {"any_": [name]}}, "sort": "UPDATED_DESC", "limit": 1}
        found = http.post("/deployments/filter", json=query).raise_for_status().json()
        flow = http.get(f"/flows/{found[0]['flow_id']}").raise_for_status().json()
    return f"{flow['name']}/{name}"


def _run(profile: Profile, command: list[str], flows: FlowsFolder = OWN, **variables: str) -> str:
    done = subprocess.run(
        command,
        cwd=flows.path,
        env=flows.environment(profile.environment()) | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-12:])
        raise ProfileError(f"`{shlex.join(command)}` failed:\n{tail}")
    return done.stdout


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    app(prog_name="python -m scripts.local")
