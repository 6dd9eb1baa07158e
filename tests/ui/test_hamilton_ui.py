"""The Hamilton UI of the local profile: access, requests and shutdown."""

import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from prefect_hamilton._hamilton_api import HamiltonError
from prefect_hamilton.bootstrap.hamilton import ensure_project
from tests import services
from tests.conftest import HamiltonUi

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    with services.hamilton_ui(tmp_path_factory.mktemp("ui"), global_key="key") as service:
        yield service


def test_the_profile_listens_on_loopback_only(hamilton_ui: HamiltonUi) -> None:
    process = psutil.Process(hamilton_ui.service.process.pid)
    everybody = [process, *process.children(recursive=True)]
    addresses = {
        connection.laddr.ip
        for one in everybody
        for connection in one.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_the_ui_is_served_by_this_server_alone(hamilton_ui: HamiltonUi) -> None:
    answer = httpx.get(f"{hamilton_ui.url}/dashboard/projects")
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    addresses = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    assert [address for address in addresses if not address.startswith("/")] == []
    assert "gtag" not in answer.text
    scripts = [address for address in addresses if address.endswith((".js", ".css"))]
    assert len(scripts) >= 2
    for address in scripts:
        file = httpx.get(hamilton_ui.url + address)
        assert file.status_code == 200
        assert not file.headers["content-type"].startswith("text/html")


def test_debug_mode_is_off_and_other_hosts_are_refused(hamilton_ui: HamiltonUi) -> None:
    answer = httpx.get(hamilton_ui.url, headers={"Host": "example.org"})
    assert answer.status_code == 400
    assert "Traceback" not in answer.text
    assert "settings" not in answer.text


def test_a_busy_port_is_reported_in_one_sentence(hamilton_ui: HamiltonUi, tmp_path: Path) -> None:
    port = str(hamilton_ui.service.port)
    command = [sys.executable, "-m", "scripts.hamilton_ui", "--port", port, "--state"]
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=services.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"Hamilton UI: port {port} on 127.0.0.1 cannot be used (Address already in use): "
        "stop the process that uses it, or choose another port with --port"
    ]


def test_an_unusable_database_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "db.sqlite3").write_text("not a database, but long enough to be looked at" * 30)
    command = [sys.executable, "-m", "scripts.hamilton_ui", "--port", "0", "--state"]
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=services.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "db.sqlite3 cannot be used: file is not a database" in line


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_down_ends_all_processes_and_keeps_the_data(tmp_path: Path, sign: signal.Signals) -> None:
    with services.hamilton_ui(tmp_path) as service:
        project = ensure_project(service.url, "a", "kept")
        key = (tmp_path / "secret-key").read_text()
        process = psutil.Process(service.process.pid)
        children = process.children(recursive=True)
        assert children
        service.process.send_signal(sign)
        assert service.process.wait(timeout=20) == (-sign if sign == signal.SIGKILL else 0)
        assert psutil.wait_procs(children, timeout=20)[1] == []

        service.start()
        assert ensure_project(service.url, "a", "kept") == project
        assert (tmp_path / "secret-key").read_text() == key
        assert stat.S_IMODE((tmp_path / "secret-key").stat().st_mode) == 0o600


def test_a_project_is_found_beyond_the_first_hundred(hamilton_ui: HamiltonUi) -> None:
    first = ensure_project(hamilton_ui.url, "busy", "old")
    visibility = {
        "user_ids_visible": [],
        "user_ids_writable": ["busy"],
        "team_ids_visible": [],
        "team_ids_writable": [],
    }
    headers = {"x-api-user": "busy"}
    with httpx.Client(base_url=f"{hamilton_ui.url}/api/v1", headers=headers, timeout=30) as http:
        for number in range(100):
            project = {"name": f"newer {number}", "description": "", "tags": {}}
            http.post("/projects", json=project | {"visibility": visibility}).raise_for_status()
    assert ensure_project(hamilton_ui.url, "busy", "old") == first


def test_a_project_is_created_once(hamilton_ui: HamiltonUi) -> None:
    first = ensure_project(hamilton_ui.url, "a", "once", other_users=("b",))
    assert ensure_project(hamilton_ui.url, "a", "once") == first
    assert ensure_project(hamilton_ui.url, "b", "once") == first
    assert ensure_project(hamilton_ui.url, "c", "once") != first


def test_adding_users_to_a_project_keeps_existing_users(hamilton_ui: HamiltonUi) -> None:
    url = hamilton_ui.url
    first = ensure_project(url, "a", "shared", other_users=("b",))
    assert ensure_project(url, "a", "shared", other_users=("d", "e@example.org")) == first
    for user in ("a", "b", "d", "e@example.org"):
        assert ensure_project(url, user, "shared") == first, user
    assert ensure_project(url, "f", "shared") != first


def test_key_of_the_server(keyed: services.Service) -> None:
    assert ensure_project(keyed.url, "a", "p", "key") == ensure_project(keyed.url, "a", "p", "key")
    for wrong in ("another", None):
        with pytest.raises(HamiltonError, match="refuses the API key") as refused:
            ensure_project(keyed.url, "a", "p", wrong)
        assert "another" not in str(refused.value)


def test_unreachable_and_invalid_addresses() -> None:
    nobody = f"http://127.0.0.1:{services.free_port()}"
    with pytest.raises(HamiltonError, match="cannot be reached"):
        ensure_project(nobody, "a", "p")
    with pytest.raises(HamiltonError, match="must be an http"):
        ensure_project("localhost", "a", "p")
