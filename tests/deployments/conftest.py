"""A real Git server: lighttpd with git http-backend, over HTTPS."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import services
from tests.deployments.git_server import ROOT, TOKEN, GitServer, git, wait_for_port
from tests.services import free_port

GIT_BACKEND = Path("/usr/lib/git-core/git-http-backend")
# Git's own, but for the answers that a test asked for.
BACKEND = """#!/bin/sh
status=$(head -n 1 {answers})
sed -i 1d {answers}
case "$status" in
  "" | 200) exec {git} ;;
  *) printf 'Status: %s\\r\\nContent-Type: text/plain\\r\\n\\r\\nnot now\\n' "$status" ;;
esac
"""


@pytest.fixture(scope="session")
def git_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    """Serve Git repositories over HTTPS on a free port, the private ones behind a token."""
    missing = [name for name in ("lighttpd", "openssl") if not shutil.which(name)]
    if missing or not GIT_BACKEND.exists():
        pytest.skip(f"needs lighttpd, openssl and git http-backend; missing: {missing or 'git'}")
    home = tmp_path_factory.mktemp("git-server")
    repositories = home / "repositories"
    (repositories / "private").mkdir(parents=True)
    certificate = home / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(home / "key.pem"), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    (home / "both.pem").write_text((home / "key.pem").read_text() + certificate.read_text())
    answers = home / "answers"
    answers.touch()
    backend = home / "backend"
    backend.write_text(BACKEND.format(answers=answers, git=GIT_BACKEND))
    backend.chmod(0o755)
    # Prefect puts a bare token into the address as the user name, with an empty password.
    (home / "users").write_text(f"{TOKEN}:\n")
    port, http_port = free_port(), free_port()
    configuration = home / "lighttpd.conf"
    configuration.write_text(f"""
server.modules = ("mod_alias", "mod_setenv", "mod_auth", "mod_authn_file", "mod_cgi", "mod_openssl")
server.document-root = "{home}"
server.bind = "127.0.0.1"
server.port = {port}
ssl.engine = "enable"
ssl.pemfile = "{home / "both.pem"}"
$SERVER["socket"] == "127.0.0.1:{http_port}" {{ ssl.engine = "disable" }}
alias.url = ("/git" => "{backend}")
setenv.set-environment = ("GIT_PROJECT_ROOT" => "{repositories}", "GIT_HTTP_EXPORT_ALL" => "1")
cgi.assign = ("" => "")
auth.backend = "plain"
auth.backend.plain.userfile = "{home / "users"}"
$HTTP["url"] =~ "^/git/private/" {{
  auth.require = ("" => ("method" => "basic", "realm" => "git", "require" => "valid-user"))
}}
""")
    server = subprocess.Popen(["lighttpd", "-D", "-f", str(configuration)])
    try:
        wait_for_port(port)
        yield GitServer(
            f"https://localhost:{port}/git",
            f"http://localhost:{http_port}/git",
            repositories,
            certificate,
            answers,
        )
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.fixture
def flow_repository(tmp_path: Path) -> Path:
    """Return a repository that holds the project's flows, as a user's would, in two commits."""
    repository = tmp_path / "source"
    repository.mkdir()
    tracked = git("ls-files", "flows", "prefect.yaml", cwd=ROOT).splitlines()
    for name in tracked:
        if (ROOT / name).exists():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, repository / name)
    git("init", "--quiet", "--initial-branch=main", cwd=repository)
    git("add", ".", cwd=repository)
    git("commit", "--quiet", "-m", "Flows", cwd=repository)
    return repository


@pytest.fixture(scope="module", params=["sqlite"])
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server of all tests keeps its data in SQLite, that of some in PostgreSQL as well."""
    settings: dict[str, Any] = {}
    if request.param == "postgres":
        postgres = request.getfixturevalue("postgres")
        url = services.create_database(postgres, request.node.path.stem)
        settings["PREFECT_API_DATABASE_CONNECTION_URL"] = services.as_prefects(url)
    with services.prefect_server(tmp_path_factory.mktemp("server"), **settings) as server:
        yield f"{server.url}/api"
