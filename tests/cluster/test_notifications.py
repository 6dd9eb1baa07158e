"""Messages of the alerts reach a pod in the cluster, through the NetworkPolicies of the chart."""

import json
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clusters import NAMESPACE, RELEASE, Cluster, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

CHART = "charts/prefect-hamilton"

PORT = 8080

RECEIVE = f"""
import http.server, json
from datetime import datetime, timezone
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message["at"] = datetime.now(timezone.utc).isoformat()
        print(json.dumps(message), flush=True)
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("", {PORT}), Receiver).serve_forever()
"""


class Receiver:
    """A pod that takes the messages of a channel."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def messages(self, subject: str) -> list[Any]:
        """The messages so far with this subject."""
        lines = self._cluster.kubectl("logs", "receiver").splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [message for message in found if message["subject"] == subject]

    @eventually
    def message(self, subject: str) -> Any:
        found = self.messages(subject)
        assert found, subject
        return found[0]


@pytest.fixture
def receiver(cluster: Cluster, tmp_path: Path) -> Iterator[Receiver]:
    """A channel to a pod; afterwards the release is as it was."""
    server = cluster.get("deploy", f"{RELEASE}-server")["spec"]["template"]["spec"]
    container = {
        "name": "receiver",
        "image": server["containers"][0]["image"],
        "args": ["python", "-c", RECEIVE],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "receiver", "namespace": NAMESPACE, "labels": {"app": "receiver"}},
        "spec": {"containers": [container], "automountServiceAccountToken": False},
    }
    file = tmp_path / "receiver.yaml"
    file.write_text(yaml.safe_dump(pod))
    cluster.kubectl("apply", "-f", str(file))
    cluster.kubectl("wait", "pod/receiver", "--for=condition=Ready", "--timeout=120s")
    address = cluster.get("pod", "receiver")["status"]["podIP"]
    host = f"[{address}]" if ":" in address else address
    cluster.kubectl(
        *("create", "secret", "generic", "receiver"), f"--from-literal=url=http://{host}:{PORT}/"
    )
    channel = {
        "type": "webhook",
        "existingSecret": "receiver",
        "port": PORT,
        "to": [{"podSelector": {"matchLabels": {"app": "receiver"}}}],
    }
    values = tmp_path / "values.yaml"
    presets = {"failed": {"interval": 0}, "pool": {"enabled": False}}
    alerts = {"channels": {"receiver": channel}, "presets": presets}
    values.write_text(yaml.safe_dump({"alerts": alerts}))
    options = ("--reset-then-reuse-values", "--wait", "--timeout=300s")
    cluster.helm("upgrade", RELEASE, CHART, *options, "--wait-for-jobs", "--values", str(values))
    try:
        yield Receiver(cluster)
    finally:
        nothing = ("--set-json", "alerts.channels=null")
        cluster.helm("upgrade", RELEASE, CHART, *options, "--wait-for-jobs", *nothing)
        cluster.kubectl("delete", "secret/receiver", "pod/receiver", "--grace-period=1")


def test_a_failed_and_an_out_of_memory_run_send_one_message_each(
    cluster: Cluster, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    said = cluster.helm("test", RELEASE, "--timeout=180s", "--logs")
    assert "a message arrived through the channel receiver" in said
    runs = {
        "eats-memory crashed": cluster.start(
            cluster.probe("eats_memory"), job_variables={"memory_limit": "256Mi"}
        ),
        # There is no such file.
        "shows failed": cluster.start(cluster.probe("shows"), variables=[], files=["/absent"]),
    }
    for subject, run_id in runs.items():
        message = receiver.message(subject)
        run = cluster.flow_run(run_id)
        assert run["name"] in message["body"]
        assert f"/runs/flow-run/{run_id}" in message["body"]
        assert run["state"]["message"][:100] in message["body"]
        arrived = datetime.fromisoformat(message["at"])
        seconds = (arrived - datetime.fromisoformat(run["state"]["timestamp"])).total_seconds()
        with capsys.disabled():
            sys.stdout.write(f"\n{subject}: a message after {seconds:.1f} s\n")
    # A later message, after which none of the earlier ones is still on its way.
    cluster.helm("test", RELEASE, "--timeout=180s")
    assert all(len(receiver.messages(subject)) == 1 for subject in runs)
