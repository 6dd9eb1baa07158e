"""A Kubernetes API that stores Jobs and pods, and can lose responses or be unavailable."""

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import jsonpatch
import yaml
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol


class KubernetesApi:
    """Jobs and pods of one namespace, and what the next requests meet."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.workers: dict[str, str] = {}
        """Phases of the pods of workers."""
        self.secrets: dict[str, dict[str, Any]] = {}
        self.may_create_secrets = True
        self.is_away = False
        self.loses_answers = 0
        self.is_full = False
        """Whether a quota refuses every new Job."""
        self.before_patch: Callable[[str, str], None] = lambda kind, name: None
        """Called with `jobs` or `pods` and a name, before the object is changed."""
        self.answers_attach = True
        """Whether a pod confirms what is written to its standard input."""
        self.heard: dict[str, list[str]] = {}
        """Lines that pods got on standard input, by the pod's name."""
        self._versions = itertools.count(1)

    def add(self, job: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        metadata = job["metadata"]
        name = metadata.setdefault("name", metadata.get("generateName", "") + uuid4().hex[:5])
        if name in self.jobs:
            return 409, {"kind": "Status", "reason": "AlreadyExists", "message": "exists"}
        if self.is_full:
            return 403, {"kind": "Status", "reason": "Forbidden", "message": "exceeded quota"}
        metadata["uid"] = str(uuid4())
        metadata["creationTimestamp"] = datetime.now(UTC).isoformat()
        metadata["resourceVersion"] = str(next(self._versions))
        self.jobs[name] = job | {"status": {}}
        return 201, self.jobs[name]

    def add_secret(self, secret: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if not self.may_create_secrets:
            return 403, {"kind": "Status", "reason": "Forbidden", "message": "secrets is forbidden"}
        name = secret["metadata"]["name"]
        if name in self.secrets:
            return 409, {"kind": "Status", "reason": "AlreadyExists", "message": "exists"}
        self.secrets[name] = secret
        return 201, secret

    def start_pods(self) -> None:
        """Start the pod of each Job that has none."""
        for name, job in list(self.jobs.items()):
            uid = job["metadata"]["uid"]
            if any(_job_of(pod) == name for pod in self.pods):
                continue
            template = job["spec"]["template"]
            labels = {
                "batch.kubernetes.io/job-name": name,
                "batch.kubernetes.io/controller-uid": uid,
            }
            owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
            containers = template["spec"]["containers"]
            metadata = {
                "name": f"{name}-pod",
                "namespace": "default",
                "uid": str(uuid4()),
                "creationTimestamp": job["metadata"]["creationTimestamp"],
                "labels": template["metadata"].get("labels", {}) | labels,
                "annotations": template["metadata"].get("annotations", {}),
                "ownerReferences": [owner],
            }
            status = [
                {"name": each["name"], "image": "", "imageID": "", "ready": True}
                | {"restartCount": 0, "state": {"running": {}}}
                for each in containers
            ]
            self.pods.append(
                {
                    "metadata": metadata,
                    "spec": {"containers": containers},
                    "status": {"phase": "Running", "containerStatuses": status},
                }
            )

    def pods_of_jobs(self) -> list[dict[str, Any]]:
        """The pods without those of Jobs that were deleted, but those that are still ending."""
        return [
            pod
            for pod in self.pods
            if _job_of(pod) in self.jobs or "deletionTimestamp" in pod["metadata"]
        ]

    def all_pods(self) -> list[dict[str, Any]]:
        """Pods of workers, and those of Jobs."""
        workers = [
            {"metadata": {"name": name, "labels": {}}, "status": {"phase": phase}}
            for name, phase in self.workers.items()
        ]
        return [*workers, *self.pods_of_jobs()]

    def pod(self, job: str) -> Any:
        """The pod of a Job."""
        (found,) = [pod for pod in self.pods if _job_of(pod) == job]
        return found

    def end_pod(self, job: str) -> None:
        """Let the pod of a Job end well."""
        self.pod(job)["status"] = {"phase": "Succeeded", "containerStatuses": []}

    def patch(self, kind: str, name: str, patch: Any) -> tuple[int, dict[str, Any]]:
        self.before_patch(kind, name)
        objects: dict[str, Any] = (
            self.jobs if kind == "jobs" else {pod["metadata"]["name"]: pod for pod in self.pods}
        )
        if name not in objects:
            return 404, {"kind": "Status", "reason": "NotFound"}
        found = objects[name]
        if isinstance(patch, list):
            try:
                new = jsonpatch.apply_patch(found, patch)
            except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
                return 422, {"kind": "Status", "reason": "Invalid", "message": str(error)}
            found.clear()
            found.update(new)
        else:
            metadata = patch["metadata"]
            if metadata["uid"] != found["metadata"]["uid"]:
                return 409, {"kind": "Status", "reason": "Conflict"}
            for part in ("labels", "annotations"):
                found["metadata"][part] |= metadata[part]
        found["metadata"]["resourceVersion"] = str(next(self._versions))
        return 200, found

    def delete(self, name: str, options: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Delete a Job and its pods."""
        if name not in self.jobs:
            return 404, {"kind": "Status", "reason": "NotFound"}
        metadata = self.jobs[name]["metadata"]
        wanted = options.get("preconditions") or {}
        if any(wanted.get(key) not in (None, metadata[key]) for key in ("uid", "resourceVersion")):
            return 409, {"kind": "Status", "reason": "Conflict"}
        del self.jobs[name]
        self.pods = [pod for pod in self.pods if _job_of(pod) != name]
        return 200, {"kind": "Status", "status": "Success"}

    def finish(
        self, name: str, condition: str, reason: str = "BackoffLimitExceeded", message: str = ""
    ) -> None:
        """End a Job: Complete or Failed."""
        now = datetime.now(UTC).isoformat()
        end = {"type": condition, "status": "True", "lastTransitionTime": now}
        end |= {"reason": reason, "message": message}
        self.jobs[name]["status"] = {
            "succeeded" if condition == "Complete" else "failed": 1,
            "conditions": [end],
        }

    def fail_by_rule(self, name: str, exit_code: int) -> None:
        """Fail a Job by its policy for the exit code of the container."""
        container = f"Container prefect-job for pod default/{name}-pod failed"
        message = f"{container} with exit code {exit_code} matching FailJob rule at index 0"
        self.finish(name, "Failed", "PodFailurePolicy", message)

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


def _job_of(pod: dict[str, Any]) -> str:
    name: str = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]
    return name


class _Handler(BaseHTTPRequestHandler):
    api: KubernetesApi

    def do_POST(self) -> None:
        kind = self._path()[-1]
        add = self.api.add_secret if kind == "secrets" else self.api.add
        self._change(lambda _, body: add(body))

    def do_PATCH(self) -> None:
        kind, name = self._path()[-2:]
        self._change(lambda _, body: self.api.patch(kind, name, body))

    def do_DELETE(self) -> None:
        self._change(self.api.delete)

    def _change(self, change: Callable[[str, Any], tuple[int, dict[str, Any]]]) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.api.is_away:
            self._answer(503, {"message": "the server is currently unable to handle the request"})
            return
        answer = change(self._path()[-1], body)
        if self.api.loses_answers:
            self.api.loses_answers -= 1
            self.close_connection = True
            return
        self._answer(*answer)

    def do_GET(self) -> None:
        *_, kind, name = self._path()
        if self.api.is_away:
            self._answer(503, {})
        elif name == "attach":
            self._attach(kind)
        elif name in ("jobs", "pods"):
            objects = list(self.api.jobs.values()) if name == "jobs" else self.api.all_pods()
            found = [each for each in objects if self._is_selected(each)]
            self._answer(200, {"kind": f"{name.title()[:-1]}List", "items": found})
        elif found := self._named(kind, name):
            self._answer(200, found[0])
        else:
            self._answer(404, {"kind": "Status", "reason": "NotFound"})

    def _path(self) -> list[str]:
        return urlsplit(self.path).path.split("/")

    def _named(self, kind: str, name: str) -> list[Any]:
        objects = self.api.jobs.values() if kind == "jobs" else self.api.pods
        return [each for each in objects if each["metadata"]["name"] == name]

    def _is_selected(self, found: dict[str, Any]) -> bool:
        """Whether an object has the name of the query, and its labels: `name`, or `name=value`."""
        query = parse_qs(urlsplit(self.path).query)
        labels = found["metadata"]["labels"]
        for each in query.get("fieldSelector", []):
            if each != f"metadata.name={found['metadata']['name']}":
                return False
        for each in query.get("labelSelector", []):
            for part in each.split(","):
                key, is_equal, value = part.partition("=")
                if key not in labels or (is_equal and labels[key] != value):
                    return False
        return True

    def _attach(self, pod: str) -> None:
        """Take a line of standard input, and print what a flow pod says then."""
        protocol = ServerProtocol()
        lines = [self.requestline, *(f"{key}: {value}" for key, value in self.headers.items())]
        protocol.receive_data("\r\n".join([*lines, "", ""]).encode())
        (request,) = protocol.events_received()
        response = protocol.accept(request)
        response.headers["Sec-WebSocket-Protocol"] = "v4.channel.k8s.io"
        protocol.send_response(response)
        while True:
            for data in protocol.data_to_send():
                self.connection.sendall(data or b"")
            if not (received := self.connection.recv(1 << 16)):
                break
            protocol.receive_data(received)
            for frame in protocol.events_received():
                if isinstance(frame, Frame) and frame.opcode is Opcode.BINARY:
                    line = frame.data[1:].decode()
                    self.api.heard.setdefault(pod, []).append(line)
                    if self.api.answers_attach:
                        run = json.loads(line)["environment"]["PREFECT__FLOW_RUN_ID"]
                        protocol.send_binary(f"\x02Standby pod begins flow run '{run}'".encode())
        self.close_connection = True

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


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
