"""What the flows talk to, for real: HTTP servers, an object store, PostgreSQL, a DuckDB file."""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psycopg
import pytest
import tenacity

from tests.services import free_port

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class WebServer:
    """A real HTTP server; `answers` maps a path with its query to status, headers and body."""

    url: str
    answers: dict[str, Answer | Callable[[bytes], Answer]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def serve(self, path: str, body: bytes | str, status: int = 200, **headers: str) -> str:
        """Answer `path` from now on; returns its URL."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = body.encode() if isinstance(body, str) else body
        self.answers[path] = (status, named, content)
        return self.url + path


@pytest.fixture
def web_server() -> Iterator[WebServer]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            web.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            answer = web.answers.get(self.path, (404, {}, b"not here"))
            status, headers, content = answer(body) if callable(answer) else answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer  # noqa: N815 (the names http.server calls)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web = WebServer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield web
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server's URL without database; it refuses to run as root, so it does not."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("no PostgreSQL server in /usr/lib/postgresql: apt-get install postgresql")
    folder = programs[-1].parent
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    as_user = user if os.getuid() == 0 else []
    # Not below pytest's folder, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="postgres-") as home:
        yield from _postgres(folder, as_user, Path(home))


def _postgres(folder: Path, as_user: list[str], home: Path) -> Iterator[str]:
    home.chmod(0o755)
    data = home / "data"
    data.mkdir()
    if as_user:
        shutil.chown(data, "nobody", "nogroup")
    initdb = [str(folder / "initdb"), "-D", str(data), "-U", "loader", "--auth=trust", "-N"]
    subprocess.run([*as_user, *initdb], check=True, capture_output=True, cwd=home)
    port = free_port()
    settings = {
        "port": str(port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "fsync": "off",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    command = [*as_user, str(folder / "postgres"), "-D", str(data), *options]
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


@pytest.fixture(params=["duckdb", "postgres"])
def any_warehouse(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """An empty warehouse of each kind, in WAREHOUSE_URL; returns the URL."""
    if request.param == "duckdb":
        url = f"duckdb:///{tmp_path}/warehouse.duckdb"
    else:
        server = request.getfixturevalue("postgres")
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS warehouse WITH (FORCE)")
            connection.execute("CREATE DATABASE warehouse")
        url = f"{server}/warehouse"
    monkeypatch.setenv("WAREHOUSE_URL", url)
    return url


@pytest.fixture
def duckdb_warehouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty DuckDB warehouse, in WAREHOUSE_URL; returns the URL."""
    url = f"duckdb:///{tmp_path}/warehouse.duckdb"
    monkeypatch.setenv("WAREHOUSE_URL", url)
    return url
