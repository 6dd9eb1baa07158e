"""Real servers for tests: each on a free port of 127.0.0.1, gone when its block ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import psycopg
import tenacity
from psycopg import sql

from scripts import local_profile
from scripts.hamilton_ui import package_folder
from scripts.ports import free_port as free_port
from tests import first_start, forks

ROOT = Path(__file__).parent.parent

OWN_SERVER = ("prefect_hamilton.server",)


def output(
    *command: str,
    folder: Path,
    env: dict[str, str],
    text: str | None = None,
    check: bool = True,
) -> str:
    """Run a command in a folder; returns its output, errors included."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=env,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, f"{command}: {done.stdout}"
    return done.stdout


def _is_busy(response: httpx.Response) -> bool:
    response.read()
    return response.status_code == httpx.codes.SERVICE_UNAVAILABLE


class BusyTransport(httpx.HTTPTransport):
    """Asks again while SQLite is locked and nothing was written, as Prefect's client does."""

    def __init__(self) -> None:
        super().__init__(verify=local_profile.tls())

    @tenacity.retry(
        retry=tenacity.retry_if_result(_is_busy),
        stop=tenacity.stop_after_delay(60),
        wait=tenacity.wait_fixed(0.2),
        retry_error_callback=lambda state: state.outcome and state.outcome.result(),
    )
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return super().handle_request(request)


@dataclass
class Service:
    """A server process and its log."""

    command: list[str]
    port: int
    ready_path: str
    log: Path
    env: dict[str, str]
    forked: bool
    process: subprocess.Popen[bytes] | forks.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_until_ready(self, seconds: float = 180) -> None:
        """Return when the server answers; RuntimeError with its log when it ends or does not."""
        with httpx.Client(base_url=self.url, timeout=2, verify=local_profile.tls()) as client:
            for attempt in tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(httpx.HTTPError),
                stop=tenacity.stop_after_delay(seconds),
                wait=tenacity.wait_fixed(0.1),
                reraise=True,
            ):
                with attempt:
                    if not self.alive:
                        raise RuntimeError(f"{self.command} ended: {self.log.read_text()}")
                    client.get(self.ready_path).raise_for_status()

    def start(self) -> None:
        """Start (again) on the same port with the same data."""
        self.process = _spawn(self.command, self.log, self.env, self.forked)
        self.wait_until_ready()

    def stop(self) -> None:
        """End the server and its children."""
        if self.alive:
            self.thaw()
            self.process.terminate()
            self.process.wait(timeout=20)

    def freeze(self) -> None:
        """From now on the server accepts connections and never answers."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)


def _spawn(
    command: list[str], log: Path, env: Mapping[str, str], forked: bool
) -> subprocess.Popen[bytes] | forks.Server:
    if forked:
        _python, _m, module, *arguments = command
        return forks.Server(module, *arguments, env=os.environ | dict(env), folder=ROOT, log=log)
    with log.open("ab") as output:
        # A new process group, so that a test can stop the server with its children.
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | dict(env),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextmanager
def _running(
    command: list[str],
    port: int,
    ready_path: str,
    log: Path,
    env: dict[str, str],
    *,
    forked: bool = False,
) -> Iterator[Service]:
    process = _spawn(command, log, env, forked)
    service = Service(command, port, ready_path, log, env, forked, process)
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.stop()


@contextmanager
def hamilton_ui(state: Path, global_key: str | None = None) -> Iterator[Service]:
    """A Hamilton UI with its data in `state`, which only answers to `global_key` when given."""
    state.mkdir(parents=True, exist_ok=True)
    first_start.hamilton_ui(state)
    port = free_port()
    command = [sys.executable, "-m", "scripts.hamilton_ui"]
    command += ["--port", str(port), "--state", str(state)]
    env = {"HAMILTON_PERMISSIVE_MODE_GLOBAL_KEY": global_key or ""}
    with _running(command, port, "/api/ping", state / "server.log", env) as service:
        yield service


def create_database(postgres: str, name: str) -> str:
    """Create an empty database of a PostgreSQL server; returns its URL."""
    with psycopg.connect(f"{postgres}/postgres", autocommit=True) as connection:
        for statement in ("DROP DATABASE IF EXISTS {} WITH (FORCE)", "CREATE DATABASE {}"):
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))
    return f"{postgres}/{name}"


def as_prefects(database: str) -> str:
    """The URL of a database as Prefect's server takes it."""
    return database.replace("postgresql:", "postgresql+asyncpg:")


def hamilton_database(postgres: str, blobs: Path) -> dict[str, str]:
    """The environment of the image's Hamilton UI, with a new database in a PostgreSQL."""
    name = f"hamilton_ui_{uuid4().hex[:8]}"
    server = urlsplit(create_database(postgres, name))
    return {
        "DB_HOST": server.hostname or "",
        "DB_PORT": str(server.port),
        "DB_USER": server.username or "",
        "DB_PASSWORD": "unused",
        "DB_NAME": name,
        "PYTHONPATH": str(package_folder()),
        "DJANGO_SETTINGS_MODULE": "prefect_hamilton.hamilton_ui.settings",
        "DJANGO_SECRET_KEY": "of-the-test",
        "HAMILTON_ENV": "mini",
        "HAMILTON_AUTH_MODE": "permissive",
        "HAMILTON_BLOB_STORE": "local",
        "HAMILTON_LOCAL_BLOB_DIR": str(blobs),
    }


@contextmanager
def image_hamilton_ui(folder: Path, **settings: str) -> Iterator[Service]:
    """The Hamilton UI as its image runs it, with an environment of `hamilton_database`."""
    port = free_port()
    env = {"PORT": str(port), "TMPDIR": str(folder), **settings}
    command = [sys.executable, "-m", "prefect_hamilton.hamilton_ui", "serve"]
    with _running(command, port, "/api/ping", folder / "server.log", env) as service:
        yield service


@contextmanager
def prefect_ui(state: Path) -> Iterator[Service]:
    """Prefect's UI as the local profile with this state folder serves it, without an API."""
    port = free_port()
    profile = local_profile.Profile(state=state, port=port)
    first_start.prefect_ui(state)
    local_profile.prepare(state)
    command = [sys.executable, "-m", "scripts.prefect_ui", "--port", str(port)]
    with _running(
        command, port, "/ui-settings", state / "logs" / "ui.log", profile.settings()
    ) as service:
        yield service


@contextmanager
def prefect_server(
    home: Path,
    *,
    python: Path | str = sys.executable,
    port: int | None = None,
    program: tuple[str, ...] = ("prefect", "server", "start"),
    background_services: bool = False,
    **settings: str,
) -> Iterator[Service]:
    """A Prefect server, its database in `home` unless the settings name another.

    The database is a copy of a migrated one. The process is forked from one that has imported
    Prefect, unless `python` is another, or a setting is about logging: an import reads these.
    `program` is a module and its arguments; `OWN_SERVER` is what the image runs.
    """
    home.mkdir(parents=True, exist_ok=True)
    is_own = python == sys.executable
    if is_own and not any("DATABASE" in name for name in settings):
        first_start.prefect(home)
        # Its types of blocks are there already.
        settings = {"PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false"} | settings
    port = port or free_port()
    command = [str(python), "-m", *program]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    if not background_services:
        command.append("--no-services")
    env = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_API_URL": "",
        "DO_NOT_TRACK": "1",
        **settings,
    }
    forked = is_own and not any("LOGGING" in name for name in settings)
    log = home / "server.log"
    with _running(command, port, "/api/health", log, env, forked=forked) as service:
        yield service
        _send_what_is_pending()


def _send_what_is_pending() -> None:
    """Let this process's Prefect send its logs and events while the server still answers.

    What it has left at its end it would try to send for a minute.
    """
    if "prefect.logging.handlers" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        for worker in (APILogWorker, EventsWorker):
            worker.drain_all(timeout=5)


@contextmanager
def background_services(home: Path, **settings: str) -> Iterator[Service]:
    """The background services in a process of their own, which serves their metrics."""
    from prefect_hamilton.server.background_services import METRICS_PORT  # imports Prefect

    first_start.prefect(home)
    port = free_port()
    command = [sys.executable, "-P", "-m", "prefect_hamilton.server.background_services"]
    env = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        METRICS_PORT: str(port),
        **settings,
    }
    with _running(command, port, "/metrics", home / "services.log", env) as service:
        yield service


@contextmanager
def exporter(folder: Path, *options: str, **settings: str) -> Iterator[Service]:
    """The exporter of metrics, for the API that the settings name."""
    port = free_port()
    command = [sys.executable, "-m", "prefect_hamilton.exporter"]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    env = {"PREFECT_HOME": str(folder), **settings}
    with _running(command, port, "/metrics", folder / "exporter.log", env) as service:
        yield service


@contextmanager
def kubernetes_worker(folder: Path, pool: str, port: int, **settings: str) -> Iterator[Service]:
    """The worker of type `kubernetes` of a pool, which serves its metrics at a port."""
    from prefect_hamilton.worker.metrics import PORT  # which imports Prefect

    command = [sys.executable, "-m", "prefect_hamilton.worker", "start", "--type=kubernetes"]
    command += [f"--pool={pool}", "--no-create-pool-if-not-found", "--install-policy=never"]
    env = {"PREFECT_HOME": str(folder), PORT: str(port), **settings}
    with _running(command, port, "/metrics", folder / "worker.log", env) as service:
        yield service


@contextmanager
def database_exporter(folder: Path, program: str, **settings: str) -> Iterator[Service]:
    """An exporter of a database, for the one that the settings name."""
    port = free_port()
    command = [program, f"--web.listen-address=127.0.0.1:{port}"]
    with _running(command, port, "/metrics", folder / f"{program}.log", settings) as service:
        yield service


@contextmanager
def valkey(folder: Path, program: str, password: str) -> Iterator[int]:
    """A Valkey, or Redis, that requires a password; its port."""
    port = free_port()
    settings = f"port {port}\nbind 127.0.0.1\ndir {folder}\nsave ''\nrequirepass {password}\n"
    (folder / "valkey.conf").write_text(settings)
    with (folder / "valkey.log").open("wb") as log:
        server = subprocess.Popen(
            [program, str(folder / "valkey.conf")], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(OSError),
            stop=tenacity.stop_after_delay(30),
            wait=tenacity.wait_fixed(0.1),
            reraise=True,
        ):
            with attempt, socket.create_connection(("127.0.0.1", port), timeout=5):
                pass
        yield port
    finally:
        server.terminate()
        server.wait(timeout=20)


@dataclass
class Target:
    """What a Prometheus scrapes, with a password as USER:PASSWORD if there is one."""

    port: int
    path: str = "/metrics"
    password: str = ""


@contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, Target], interval: str = "1s", rules: Any = None
) -> Iterator[Service]:
    """A Prometheus that scrapes targets by name of their job, which is also that of their pod.

    All are in the namespace `flows`.
    `rules` is the `spec` of a PrometheusRule. Debian's package `prometheus` has the program.
    """
    port = free_port()
    scrapes = []
    for job, target in targets.items():
        user, _, password = target.password.partition(":")
        labels = {"namespace": "flows", "pod": job}
        addresses = {"targets": [f"127.0.0.1:{target.port}"], "labels": labels}
        scrape = {"job_name": job, "metrics_path": target.path, "static_configs": [addresses]}
        scrapes.append(
            scrape | ({"basic_auth": {"username": user, "password": password}} if user else {})
        )
    (folder / "rules.yml").write_text(json.dumps(rules or {"groups": []}))
    content = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "scrape_configs": scrapes,
        "rule_files": ["rules.yml"],
    }
    (folder / "prometheus.yml").write_text(json.dumps(content))
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with _running(command, port, "/-/ready", folder / "prometheus.log", {}) as service:
        yield service


def ask(prometheus: Service, expression: str) -> list[dict[str, Any]]:
    """Evaluate an expression; its series, each with `metric` (labels) and `value`."""
    url = f"{prometheus.url}/api/v1/query"
    answer = httpx.get(url, params={"query": expression}, verify=local_profile.tls())
    found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]["result"]
    return found


@contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """A PostgreSQL server run by the `programs` of a version; its URL without database.

    It refuses to run as root, so it does not.
    """
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    as_user = user if os.getuid() == 0 else []
    # Not below pytest's folder, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        data = home / "data"
        data.mkdir()
        if as_user:
            shutil.chown(data, "nobody", "nogroup")
        initdb = [str(programs / "initdb"), "-D", str(data), "-U", "loader", "--auth=trust", "-N"]
        subprocess.run([*as_user, *initdb], check=True, capture_output=True, cwd=home)
        port = free_port()
        settings = {
            "port": str(port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [*as_user, str(programs / "postgres"), "-D", str(data), *options]
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(command, cwd=home, stdout=log, stderr=subprocess.STDOUT)
        url = f"postgresql://loader@127.0.0.1:{port}"
        try:
            tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(psycopg.OperationalError),
                stop=tenacity.stop_after_delay(60),
                wait=tenacity.wait_fixed(0.1),
                reraise=True,
            )(psycopg.connect, f"{url}/postgres").close()
            yield url
        finally:
            server.send_signal(signal.SIGINT)  # fast shutdown
            server.wait(timeout=60)


@contextmanager
def local_prefect(profile: local_profile.Profile) -> Iterator[None]:
    """The local profile's Prefect server, and its UI if that has a separate port."""
    first_start.prefect(profile.state / "prefect")
    first_start.prefect_ui(profile.state)
    local_profile.prepare(profile.state)
    environment = profile.environment()
    log = profile.state / "logs" / "server.log"
    server = [sys.executable, "-m", "prefect", "server", "start", "--no-services"]
    with ExitStack() as stack:
        stack.enter_context(
            _running(server, profile.api_port, "/api/health", log, environment, forked=True)
        )
        if profile.split:
            ui = [sys.executable, "-m", "scripts.prefect_ui", "--port", str(profile.port)]
            stack.enter_context(_running(ui, profile.port, "/ui-settings", log, environment))
        yield
