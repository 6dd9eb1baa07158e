"""The local profile: its settings, its processes and its state folder.

honcho runs the servers and the worker of the Procfile in one session. The environment of each
process, flow runs included, has the variable `MARKER` with the state folder as its value. `end`
uses it to find all processes, even if their parent was killed.
"""

import contextlib
import errno
import functools
import os
import secrets
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
from packaging.version import Version
from pydantic import BaseModel, ValidationError
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from prefect_hamilton.server import ui_files

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
WORK_POOL = "local-process-pool"
MARKER = "PREFECT_HAMILTON_RUNNING"

WORKER = "prefect worker start"
OWN_WORKER = "prefect_hamilton.worker start"
FORKED = "prefect_hamilton.worker.forked"
"""What the command lines of a worker, of this project's worker and of its flow runs contain."""

GRACE = 8.0
"""Seconds that processes have to terminate before they are killed."""


@functools.cache
def tls() -> ssl.SSLContext:
    """Return the certificates for all clients: to read them takes longer than a request."""
    return httpx.create_ssl_context(trust_env=False)


class ProfileError(Exception):
    """An error that the user can fix; the message names the cause and the fix."""


class Profile(BaseModel, frozen=True):
    """State folder and ports. The UI and the API share a port unless they are split."""

    state: Path
    port: int = 4200
    api_port: int = 4200
    hamilton_port: int = 8241
    skip_late_after: int = 0
    """Seconds after which the worker skips a late run of a schedule; 0: never."""

    @property
    def split(self) -> bool:
        """Whether the UI and the API have separate ports."""
        return self.api_port != self.port

    @property
    def api_url(self) -> str:
        """Address of Prefect's API."""
        return f"http://{HOST}:{self.api_port}/api"

    @property
    def ui_url(self) -> str:
        """Address of the Prefect UI."""
        return f"http://{HOST}:{self.port}"

    @property
    def hamilton_url(self) -> str:
        """Address of the Hamilton UI."""
        return f"http://{HOST}:{self.hamilton_port}"

    @property
    def log(self) -> Path:
        """The output of all processes, each line labelled."""
        return self.state / "logs" / "profile.log"

    @property
    def record(self) -> Path:
        """What each bootstrap writes when it has applied the desired state."""
        return self.state / "bootstrap.json"

    @property
    def auth_string(self) -> str:
        """User and password of Prefect, `user:password`. Raises ProfileError."""
        path = _auth_path(self.state)
        try:
            text = path.read_text().strip()
        except OSError as error:
            raise ProfileError(f"{path} cannot be read: {error.strerror}.") from error
        user, colon, password = text.partition(":")
        if not (user and colon and password and text.isascii() and text.isprintable()):
            raise ProfileError(
                f"{path} does not contain user:password: remove it, and make up creates a new one."
            )
        return text

    @property
    def auth(self) -> tuple[str, str]:
        """User and password of Prefect as a tuple. Raises ProfileError."""
        user, _, password = self.auth_string.partition(":")
        return user, password

    def client(self, timeout: float = 30) -> httpx.Client:
        """Return an authenticated client of the Prefect API."""
        return httpx.Client(
            base_url=self.api_url, auth=self.auth, timeout=timeout, trust_env=False, verify=tls()
        )

    def settings(self) -> dict[str, str]:
        """Return what `make env` exports: enough for any command of Prefect in a terminal.

        Raises ProfileError when the state folder is not prepared.
        """
        auth_string = self.auth_string
        return {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PREFECT_HAMILTON_STATE": str(self.state),
            # Prefect's own files: the user's ~/.prefect and its profiles stay untouched.
            "PREFECT_HOME": str(self.state / "prefect"),
            "PREFECT_PROFILES_PATH": str(self.state / "prefect" / "profiles.toml"),
            "PREFECT_LOCAL_STORAGE_PATH": str(self.state / "results"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_UI_URL": self.ui_url,
            "PREFECT_UI_API_URL": self.api_url,
            "PREFECT_UI_PORT": str(self.port),
            "PREFECT_UI_STATIC_DIRECTORY": str(_ui_path(self.state)),
            "PREFECT_SERVER_API_HOST": HOST,
            "PREFECT_SERVER_API_PORT": str(self.api_port),
            # Any website may send requests to this machine from its user's browser: without the
            # password they are refused, and their answers are for the UI's own addresses only.
            "PREFECT_SERVER_API_AUTH_STRING": auth_string,
            "PREFECT_API_AUTH_STRING": auth_string,
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{self.ui_url},http://localhost:{self.port}",
            # A command that does not find the server fails instead of starting another one.
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            # A deployment whose schedules were taken out of prefect.yaml loses them.
            "PREFECT_DEPLOYMENTS_CLEAR_SCHEDULES_ON_EMPTY": "true",
            # A server that starts again knows which flow runs hold slots of limits.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
                "prefect.server.concurrency.lease_storage.filesystem"
            ),
            # Neither server nor client sends usage statistics.
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            # No offers of Prefect Cloud, no form that posts to a third party.
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            # The worker looks for new runs every second; by default it would take up to 10.
            "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "1"),
            "PREFECT_HAMILTON_WORKER_SKIP_LATE_AFTER": str(self.skip_late_after),
            # Server and clients are of one installation: a quarter of a flow run's requests.
            "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
            "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
            # Shorter than the default 30 s, so that a worker that died is soon shown as offline.
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
            "HAMILTON_API_URL": self.hamilton_url,
            "HAMILTON_UI_URL": self.hamilton_url,
            "HAMILTON_UI_PORT": str(self.hamilton_port),
        }

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the profile's processes."""
        return {
            name: value for name, value in os.environ.items() if name not in stray(os.environ)
        } | self.settings()


@dataclass(frozen=True)
class FlowsFolder:
    """A flows repository on this machine, and the environment that its flows need, if any."""

    path: Path
    venv: Path | None = None

    @classmethod
    def at(cls, path: Path) -> Self:
        """Return the repository of a folder. Raises ProfileError when it is not ready for use."""
        path = path.resolve()
        if path == ROOT:
            return cls(path)
        if not (path / "prefect.yaml").is_file():
            raise ProfileError(
                f"{path} has no prefect.yaml: pass the folder of a flows repository."
            )
        if not (path / "pyproject.toml").is_file():
            return cls(path)
        venv = path / ".venv"
        if not (venv / "bin" / "prefect").is_file():
            raise ProfileError(f"{path} has no .venv with Prefect in it: run `uv sync` there.")
        if not any(venv.glob("lib/python*/site-packages/prefect_hamilton-*.dist-info")):
            raise ProfileError(
                f"The .venv of {path} has no prefect-hamilton, which registers the deployments: "
                "add it to the dependencies in pyproject.toml, and run `uv sync` there."
            )
        return cls(path, venv)

    @property
    def local_state(self) -> Path:
        """The file beside prefect.yaml with objects, such as alerts, of the local profile only."""
        return self.path / "prefect-state.local.yaml"

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return `base` with the repository's virtual environment active, if it has one."""
        if self.venv is None:
            return dict(base)
        path = f"{self.venv / 'bin'}{os.pathsep}{base['PATH']}"
        return {**base, "PATH": path, "VIRTUAL_ENV": str(self.venv)}


OWN = FlowsFolder(ROOT)
"""The flows of this project."""


class Running(BaseModel):
    """What `up` records in the state folder while the profile is running (`running.json`)."""

    profile: Profile
    pid: int
    hamilton: dict[str, str] = {}

    def save(self) -> None:
        """Write the file atomically."""
        path = _running_path(self.profile.state)
        draft = path.with_suffix(".tmp")
        draft.write_text(self.model_dump_json(indent=2))
        draft.replace(path)


def stray(environment: Mapping[str, str]) -> list[str]:
    """Return the variables that would point Prefect to other servers or settings.

    PYTHONDONTWRITEBYTECODE is among them: without cached bytecode every flow run would compile
    Prefect first, for seconds.
    """
    return [
        name
        for name in environment
        if (name.startswith("PREFECT_") and not name.startswith(("PREFECT_LOGGING_", MARKER)))
        or name in ("HAMILTON_UI_PROJECT_ID", "PYTHONDONTWRITEBYTECODE")
    ]


def shell_lines(settings: Mapping[str, str]) -> str:
    """Return shell lines that export these settings and unset all others of Prefect."""
    unset = [f"unset {name}" for name in stray(os.environ) if name not in settings]
    return "\n".join(
        [*unset, *(f"export {name}={shlex.quote(value)}" for name, value in settings.items())]
    )


def tracking(work_pool: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings for Hamilton tracking in a work pool, for a terminal."""
    env = work_pool["base_job_template"]["variables"]["properties"]["env"].get("default") or {}
    return {name: value for name, value in env.items() if name.startswith("HAMILTON_UI_")}


def state_folder() -> Path:
    """Return the state folder: PREFECT_HAMILTON_STATE, or `.state` of the project."""
    return Path(os.environ.get("PREFECT_HAMILTON_STATE") or ROOT / ".state").resolve()


def prepare(state: Path) -> None:
    """Create the state folder, or check that this version can read it. Raises ProfileError."""
    current = Version(version("prefect"))
    stamp = state / "prefect-version"
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("prefect", "results", "logs"):
            (state / name).mkdir(exist_ok=True)
        _ensure_auth_string(state)
        if stamp.exists() and (made_by := Version(stamp.read_text().strip())) > current:
            raise ProfileError(
                f"{state} was last used with Prefect {made_by}, and Prefect {current} cannot read "
                "its database: install that version, or move the folder away."
            )
        stamp.write_text(f"{current}\n")
        _prepare_ui(state)
    except OSError as error:
        raise ProfileError(f"The state folder {state} cannot be used: {error.strerror}.") from error
    except ValueError as error:
        raise ProfileError(f"{stamp} is damaged ({error}): move {state} away.") from error


def running(state: Path) -> Running | None:
    """Return what the last `up` recorded; None if there is no readable record."""
    try:
        return Running.model_validate_json(_running_path(state).read_bytes())
    except (OSError, ValidationError):
        return None


def processes(state: Path) -> list[psutil.Process]:
    """Return all processes of the profile: honcho, servers, worker, flow runs, orphans too."""
    return [process for process in psutil.process_iter() if _belongs(process, state)]


def executed_flow_runs(state: Path) -> set[str]:
    """Return the ids of the flow runs that processes of the profile execute, orphans too."""
    found = set()
    for process in processes(state):
        with contextlib.suppress(psutil.Error, OSError):
            if flow_run := process.environ().get("PREFECT__FLOW_RUN_ID"):
                found.add(flow_run)
            if FORKED in _command(process):
                # It keeps a file open that is named after its flow run.
                found.update(Path(file.path).name for file in process.open_files())
    return found


def await_flow_runs(state: Path, seconds: float) -> set[str]:
    """Wait until no process executes a flow run; returns the ids of those that still are."""
    waiting = Retrying(
        retry=retry_if_result(bool), stop=stop_after_delay(seconds), wait=wait_fixed(0.2)
    )
    try:
        return waiting(executed_flow_runs, state)
    except RetryError as error:
        executed: set[str] = error.last_attempt.result()
        return executed


def manager(state: Path) -> psutil.Process | None:
    """Return the honcho process of the profile if it is alive."""
    noted = running(state)
    try:
        process = psutil.Process(noted.pid) if noted else None
    except psutil.Error:
        return None
    return process if process and _belongs(process, state) else None


def check_ports(profile: Profile) -> None:
    """Raise ProfileError that names the processes on busy ports, and options for other ports."""
    wanted = {profile.api_port: "--api-port", profile.port: "--port"}
    wanted[profile.hamilton_port] = "--hamilton-port"
    busy = {port: option for port, option in wanted.items() if _is_busy(port)}
    if not busy:
        return
    users = ", ".join(f"port {port} is in use by {_listener(port)}" for port in busy)
    options = " ".join(f"{option} {_another(port)}" for port, option in busy.items())
    raise ProfileError(
        f"{users[0].upper()}{users[1:]}: stop that process, or choose another port by adding "
        f"OPTIONS='{options}' to the make command."
    )


def start(profile: Profile) -> Running:
    """Start honcho with the Procfile, detached from this terminal."""
    names = ["server", "hamilton-ui", "worker", *(["prefect-ui"] if profile.split else [])]
    if profile.log.exists():
        profile.log.replace(profile.log.with_suffix(".log.old"))
    with profile.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "honcho", "--no-colour", "start", *names],
            cwd=ROOT,
            env=profile.environment() | {MARKER: str(profile.state), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    wait_for_environment(process)
    noted = Running(profile=profile, pid=process.pid)
    noted.save()
    return noted


def wait_for_environment(process: subprocess.Popen[bytes]) -> None:
    """Wait until the variable that marks the process can be read.

    The kernel closes the pipe for which Popen waits a moment before it has set up the environment:
    on a busy machine, the new process would be taken for another one's.
    """
    with contextlib.suppress(psutil.Error):
        started = psutil.Process(process.pid)
        while MARKER not in started.environ() and process.poll() is None:
            time.sleep(0.01)


def end(state: Path) -> int:
    """End every process of the profile; returns how many there were.

    The worker and its flow runs are killed first, while nothing can note it: their runs keep the
    state Running and start again at the next `up`, where a run that is asked to end would report a
    crash, or not, depending on which process is quicker. Servers are asked to end.
    """
    found = processes(state)
    _signal([process for process in found if _does_work(process)], signal.SIGKILL)
    _signal(found, signal.SIGTERM)
    psutil.wait_procs(found, timeout=GRACE)
    remaining = processes(state)
    _signal(remaining, signal.SIGKILL)
    psutil.wait_procs(remaining, timeout=GRACE)
    _running_path(state).unlink(missing_ok=True)
    return len(found)


def wipe(state: Path) -> None:
    """Remove the state folder: database, results, warehouse and logs."""
    shutil.rmtree(state, ignore_errors=True)


def last_lines(log: Path, count: int = 12) -> str:
    """Return the last lines of the log: those of the process that ended first, if one has ended.

    honcho then ends the others, whose output does not explain the failure.
    """
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    ended = next((at for at, line in enumerate(lines) if " stopped (rc=" in line), None)
    if ended is not None:
        name = lines[ended].split("|", 1)[1].split()[0]
        lines = [line for line in lines[: ended + 1] if name in line]
    return "\n".join(lines[-count:])


def said(log: Path, process: str) -> list[str]:
    """Return what a process of the profile has printed, without honcho's labels."""
    lines = (line.partition("|") for line in log.read_text(errors="replace").splitlines())
    return [text for label, _, text in lines if f" {process}.1 " in label]


def _running_path(state: Path) -> Path:
    return state / "running.json"


def _ui_path(state: Path) -> Path:
    return state / "prefect-ui" / ui_files.key()


def _prepare_ui(state: Path) -> None:
    """Copy the files of the Prefect UI to the state folder, once per version."""
    target = _ui_path(state)
    if target.exists():
        return
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="draft-", dir=target.parent) as draft:
        done = subprocess.run(
            [sys.executable, "-m", "prefect_hamilton.server.ui_files", f"{draft}/ui"],
            cwd=ROOT,
            env=Profile(state=state).environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ProfileError(done.stdout.strip())
        try:
            Path(draft, "ui").rename(target)
        except OSError:
            if not target.exists():  # as it does when `up` and `env` run at the same time
                raise
    for other in target.parent.iterdir():
        if other != target and not other.name.startswith("draft-"):
            shutil.rmtree(other, ignore_errors=True)


def _belongs(process: psutil.Process, state: Path) -> bool:
    try:
        return process.environ().get(MARKER) == str(state) and process.status() != "zombie"
    except (psutil.Error, OSError):
        return False  # ended meanwhile, or another user's


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _does_work(process: psutil.Process) -> bool:
    """Whether it is a flow run, the worker, or the shell that would restart the worker."""
    try:
        command = _command(process)
        return (
            any(word in command for word in (WORKER, OWN_WORKER, FORKED))
            or "PREFECT__FLOW_RUN_ID" in process.environ()
        )
    except psutil.Error:
        return False


def _signal(found: list[psutil.Process], number: signal.Signals) -> None:
    for process in found:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _listener(port: int) -> str:
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        connections = []
    for connection in connections:
        if (
            connection.status == psutil.CONN_LISTEN
            and connection.laddr[1:] == (port,)
            and connection.pid is not None
        ):
            try:
                command = " ".join(psutil.Process(connection.pid).cmdline())
            except psutil.Error:
                continue
            return f"process {connection.pid} ({command[:80].strip()})"
    return "another program"


def _auth_path(state: Path) -> Path:
    return state / "prefect-auth-string"


def _ensure_auth_string(state: Path) -> None:
    """Write a random password, once per state folder, readable by its owner only."""
    path = _auth_path(state)
    if path.exists():
        return
    descriptor, draft = tempfile.mkstemp(dir=state)  # for its owner only, as all such files are
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"prefect:{secrets.token_urlsafe(24)}\n")
        # Whole or not at all, and never over one that another command has just written.
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        Path(draft).unlink()


def _is_busy(port: int) -> bool:
    """Whether a process listens on the port. Raises ProfileError if it cannot be used at all."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ProfileError(f"Port {port} cannot be used: {error.strerror}.") from error
            return True
    return False


def _another(port: int) -> int:
    return port + 100 if port + 100 <= 65535 else port - 100
