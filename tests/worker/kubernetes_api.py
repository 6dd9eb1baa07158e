"""A Kubernetes API that stores Jobs and pods, and can lose responses or be unavailable."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml


class KubernetesApi:
    """Jobs and pods of one namespace, and what the next requests meet."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.is_away = False
        self.loses_answers = 0

    def add(self, job: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        metadata = job["metadata"]
        name = metadata.setdefault("name", metadata.get("generateName", "") + uuid4().hex[:5])
        if name in self.jobs:
            return 409, {"kind": "Status", "reason": "AlreadyExists", "message": "exists"}
        metadata["uid"] = str(uuid4())
        self.jobs[name] = job | {"status": {}}
        return 201, self.jobs[name]

    def finish(self, name: str, condition: str, reason: str = "BackoffLimitExceeded") -> None:
        """End a Job: Complete or Failed."""
        self.jobs[name]["status"] = {
            "succeeded" if condition == "Complete" else "failed": 1,
            "conditions": [{"type": condition, "status": "True", "reason": reason}],
        }

    def add_pod(self, job: str, exit_code: int, reason: str = "Error") -> Any:
        """Add a pod of a Job whose container has ended; returns it, to be changed."""
        end = {"exitCode": exit_code, "reason": reason}
        container = {"name": "prefect-job", "image": "", "imageID": "", "ready": False}
        containers = [container | {"restartCount": 0, "state": {"terminated": end}}]
        metadata = {"name": f"{job}-pod", "labels": {"batch.kubernetes.io/job-name": job}}
        pod = {
            "metadata": metadata,
            "spec": {"containers": [{"name": "prefect-job"}]},
            "status": {"phase": "Failed", "containerStatuses": containers},
        }
        self.pods.append(pod)
        return pod

    def write_kubeconfig(self, file: Path) -> None:
        cluster = {"name": "test", "cluster": {"server": self.url}}
        context = {"name": "test", "context": {"cluster": "test", "user": "test"}}
        user = {"name": "test", "user": {"token": "test"}}
        config = {"clusters": [cluster], "contexts": [context], "users": [user]}
        file.write_text(yaml.safe_dump(config | {"current-context": "test"}))


class _Handler(BaseHTTPRequestHandler):
    api: KubernetesApi

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.api.is_away:
            self._answer(503, {"message": "the server is currently unable to handle the request"})
            return
        answer = self.api.add(job)
        if self.api.loses_answers:
            self.api.loses_answers -= 1
            self.close_connection = True
            return
        self._answer(*answer)

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if self.api.is_away:
            self._answer(503, {})
        elif path.endswith("/jobs"):
            found = [job for job in self.api.jobs.values() if _matches(job, query)]
            self._answer(200, {"kind": "JobList", "items": found})
        elif path.endswith("/pods"):
            names = [name for name in self.api.jobs if query.endswith(f"job-name%3D{name}")]
            found = [
                pod
                for pod in self.api.pods
                if pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] in names
            ]
            self._answer(200, {"kind": "PodList", "items": found})
        elif job := self.api.jobs.get(path.rpartition("/")[2]):
            self._answer(200, job)
        else:
            self._answer(404, {"kind": "Status", "reason": "NotFound"})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def _matches(job: dict[str, Any], query: str) -> bool:
    """Whether a Job has the flow run that a label selector names, if it names one."""
    _, _, run = query.partition("flow-run-id%3D")
    return not run or job["metadata"]["labels"]["prefect.io/flow-run-id"] == run


@contextmanager
def serve() -> Iterator[KubernetesApi]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    api = KubernetesApi(server.server_port)
    server.RequestHandlerClass = type("Handler", (_Handler,), {"api": api})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
