"""A pod that takes the messages of alerts."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tests.clusters import NAMESPACE, RELEASE, Cluster, eventually

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

    def seconds(self, subject: str, since: datetime) -> float:
        """Seconds until the message arrived."""
        return (datetime.fromisoformat(self.message(subject)["at"]) - since).total_seconds()


@contextmanager
def receiving(cluster: Cluster, folder: Path, presets: dict[str, Any]) -> Iterator[Receiver]:
    """The release with a channel to a pod, and these presets; afterwards it has no channels."""
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
    file = folder / "receiver.yaml"
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
    values = folder / "values.yaml"
    alerts = {"channels": {"receiver": channel}, "presets": presets}
    values.write_text(yaml.safe_dump({"alerts": alerts}))
    upgrade = ("upgrade", RELEASE, "charts/prefect-hamilton", "--reset-then-reuse-values")
    # Tests before may have changed objects of the release with kubectl.
    options = ("--force-conflicts", "--wait", "--wait-for-jobs", "--timeout=300s")
    try:
        cluster.helm(*upgrade, *options, "--values", str(values))
        yield Receiver(cluster)
    finally:
        cluster.helm(*upgrade, *options, "--set-json", "alerts.channels=null")
        cluster.kubectl("delete", "secret/receiver", "pod/receiver", "--grace-period=1")
