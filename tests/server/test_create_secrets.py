"""The Job that creates Secrets, with its environment from the chart, against an HTTP API."""

import base64
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certifi
import httpx
import pytest

from prefect_hamilton.server import create_secrets
from tests.chart.charts import Object, env, render

Secrets = dict[tuple[str, str], dict[str, str]]


class Api(http.server.BaseHTTPRequestHandler):
    """Secrets as Kubernetes' API keeps them: 409 for one that exists, nothing is ever changed."""

    secrets: Secrets

    def do_GET(self) -> None:
        *_, namespace, _, name = self.path.split("/")
        self.answer(200, {"data": self.secrets[namespace, name]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = (self.path.split("/")[-2], body["metadata"]["name"])
        status = 409 if key in self.secrets else 201
        self.secrets.setdefault(key, body["data"])
        self.answer(status, body)

    def answer(self, status: int, body: Object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Secrets]:
    """The Secrets of an API to which the program talks from namespace `flows`."""
    handler = type("Handler", (Api,), {"secrets": {}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def connect() -> httpx.Client:
        url = f"http://127.0.0.1:{server.server_port}/api/v1/namespaces"
        return httpx.Client(base_url=url, trust_env=False)

    monkeypatch.setattr(create_secrets, "connect", connect)
    monkeypatch.setattr(create_secrets, "SERVICE_ACCOUNT", tmp_path)
    (tmp_path / "namespace").write_text("flows\n")
    yield handler.secrets
    server.shutdown()
    server.server_close()


def run(monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]) -> None:
    """Run it once as the chart's Job does."""
    job = render(values).job("secrets")
    for name, value in env(job["spec"]["template"]["spec"]["containers"][0]).items():
        monkeypatch.setenv(name, value)
    create_secrets.main()


def text(data: dict[str, str], key: str) -> str:
    return base64.b64decode(data[key]).decode()


def test_the_secrets_job_creates_secrets_once(
    secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, {"valkey": {"enabled": True}})
    name = "demo-prefect-hamilton"
    assert {key[1] for key in secrets} == {
        f"{name}-{which}" for which in ("auth", "hamilton-ui", "postgres", "valkey")
    }
    assert {key[0] for key in secrets} == {"flows"}
    auth = secrets["flows", f"{name}-auth"]
    assert text(auth, "auth-string") == f"prefect:{text(auth, 'password')}"
    postgres = secrets["flows", f"{name}-postgres"]
    password = text(postgres, "warehouse-password")
    assert f"warehouse:{password}@{name}-postgres:5432" in text(postgres, "warehouse-url")
    assert len({text(postgres, key) for key in postgres}) == len(postgres), "each its own password"
    before = json.dumps(sorted(secrets.items()))
    run(monkeypatch, {"valkey": {"enabled": True}})
    assert json.dumps(sorted(secrets.items())) == before


def test_the_secrets_job_copies_secrets_into_the_flow_namespace(
    secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, {"flows": {"namespace": "team-flows"}})
    for name, key in (
        ("auth", "auth-string"),
        ("postgres", "warehouse-url"),
        ("hamilton-ui", "api-key"),
    ):
        whole = secrets["flows", f"demo-prefect-hamilton-{name}"]
        assert secrets["team-flows", f"demo-prefect-hamilton-{name}"] == {key: whole[key]}


def test_each_namespace_of_a_pool_gets_what_its_flow_pods_use(
    secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"env": {"WAREHOUSE_URL": {"secretKeyRef": {"name": "warehouse", "key": "url"}}}}
    pools = {
        "common": {},
        "team-a": {"flows": {"namespace": "team-a"}},
        "team-b": {"flows": {"namespace": "team-b"} | own},
    }
    run(monkeypatch, {"workers": pools, "valkey": {"enabled": True}})
    copied = {key: set(data) for key, data in secrets.items() if key[0] != "flows"}
    name = "demo-prefect-hamilton"
    assert copied == {
        ("team-a", f"{name}-auth"): {"auth-string"},
        ("team-a", f"{name}-hamilton-ui"): {"api-key"},
        ("team-a", f"{name}-postgres"): {"warehouse-url"},
        ("team-b", f"{name}-auth"): {"auth-string"},
        ("team-b", f"{name}-hamilton-ui"): {"api-key"},
    }
    for (_, secret), keys in copied.items():
        whole = secrets["flows", secret]
        for namespace in {place for place, each in copied if each == secret}:
            assert all(secrets[namespace, secret][key] == whole[key] for key in keys)
    assert f"{name}-postgres.flows:5432" in text(
        secrets["team-a", f"{name}-postgres"], "warehouse-url"
    )


def test_a_namespace_that_is_added_later_gets_the_same_secrets(
    secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, {})
    before = dict(secrets)
    run(monkeypatch, {"workers": {"team": {"flows": {"namespace": "team"}}}})
    assert {key: secrets[key] for key in before} == before
    auth = "demo-prefect-hamilton-auth"
    assert secrets["team", auth] == {"auth-string": before["flows", auth]["auth-string"]}


@pytest.mark.parametrize(
    ("host", "url"),
    [("10.96.0.1", "https://10.96.0.1"), ("fd00::1", "https://[fd00::1]")],
)
def test_it_uses_the_service_account_and_no_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, url: str
) -> None:
    (tmp_path / "token").write_text("of the account\n")
    (tmp_path / "ca.crt").write_bytes(Path(certifi.where()).read_bytes())
    monkeypatch.setattr(create_secrets, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    with create_secrets.connect() as api:
        request = api.build_request("GET", "/flows/secrets/auth")
        assert str(request.url) == f"{url}/api/v1/namespaces/flows/secrets/auth"
        assert request.headers["Authorization"] == "Bearer of the account"
        assert not api.trust_env


def test_it_needs_no_kubernetes_client() -> None:
    """All other pods wait for it."""
    program = (
        "import sys; import prefect_hamilton.server.create_secrets; "
        "sys.exit(bool({'prefect', 'kubernetes_asyncio'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
