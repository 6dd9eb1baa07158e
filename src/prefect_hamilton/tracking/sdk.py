"""The Hamilton SDK's tracker, made best-effort: bounded waits, no exception into the dataflow.

A separate module because importing the SDK takes seconds. `BestEffortTracker` guards the hooks of
the SDK's `HamiltonTracker`; `Sender` is its `client_factory`: the API client that it talks to the
server with. The SDK's own client has no time-outs, keeps the process alive until the
server has answered, and sends the last nodes only after up to five seconds.
"""

import contextlib
import datetime
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx
from hamilton_sdk.adapters import HamiltonTracker
from hamilton_sdk.api import clients
from hamilton_sdk.api.projecttypes import GitInfo
from hamilton_sdk.tracking.utils import make_json_safe

from prefect_hamilton._hamilton_api import (
    HamiltonApi,
    HamiltonError,
    RefusedError,
    retry_server_errors,
)
from prefect_hamilton.tracking.settings import FlowRunTracking, Settings
from prefect_hamilton.tracking.summary import Shown, masked, without_message

T = TypeVar("T")

TIMEOUT = httpx.Timeout(5.0, connect=3.0)
"""Seconds for one request; the flow itself never waits longer than its patience lasts."""

FLUSH_INTERVAL = 2.0
"""Seconds between two sendings of node updates while a dataflow runs."""

NOT_SUMMED_UP = "not summarized: the time limit of this flow run for summaries has passed"

# Its warnings about Git and its tracebacks say nothing that our one warning does not.
# A level that the user set stays.
if logging.getLogger("hamilton_sdk").level == logging.NOTSET:
    logging.getLogger("hamilton_sdk").setLevel(logging.CRITICAL)


class Sender(clients.HamiltonClient):  # type: ignore[misc]  # the SDK has no type hints
    """Client of the Hamilton UI's API, all of whose requests run in one daemon thread.

    The caller waits for an answer for as long as the flow run's patience lasts and gets a
    HamiltonError otherwise. A daemon thread, so that a server that never answers cannot keep the
    process alive. Node updates are collected and sent every FLUSH_INTERVAL seconds and at the end
    of the run; those that could not be sent are kept and sent again.
    """

    def __init__(self, settings: Settings, shared: FlowRunTracking) -> None:
        self._settings = settings
        self._shared = shared
        self._updates: list[dict[str, Any]] = []
        self._updates_lock = threading.Lock()
        self._requests: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._api = HamiltonApi(settings.api_url, settings.username, settings.api_key, TIMEOUT)
        threading.Thread(target=self._work, name="hamilton-tracking", daemon=True).start()

    def close(self) -> None:
        """End the thread once it has done what it is at."""
        self._requests.put(None)

    # What the SDK's tracker calls.

    def validate_auth(self) -> None:
        """Nothing: `project_exists` says the same with one request less."""

    def project_exists(self, project_id: int) -> bool:
        """Check user, key and project, once in a flow run."""
        if not self._shared.project_checked:
            project = self._wait(lambda: self._request("GET", f"/projects/{project_id}"))
            if not isinstance(project, dict) or project.get("id") != project_id:
                raise self._unknown_project()
            self._shared.project_checked = True
        return True

    def register_dag_template_if_not_exists(
        self,
        project_id: int,
        dag_hash: str,
        code_hash: str,
        nodes: list[dict[str, Any]],
        code_artifacts: list[dict[str, Any]],
        name: str,
        config: dict[str, Any],
        tags: dict[str, Any],
        code: list[dict[str, Any]],
        vcs_info: GitInfo,
    ) -> int:
        """Return the id of the DAG version, which is made when the server does not have it."""
        body = {
            "name": name,
            "template_type": "HAMILTON",
            "config": Shown().config(config),
            "dag_hash": dag_hash,
            # A DAG version outlives the flow run that happens to register it.
            "tags": {k: v for k, v in tags.items() if not k.startswith("prefect_flow_run")},
            "nodes": nodes,
            "code_artifacts": code_artifacts,
            "code_log": {"files": code},
            "code_hash": code_hash,
            "code_version_info_type": "git",
            "code_version_info": {
                "git_hash": vcs_info.commit_hash,
                "git_repo": vcs_info.repository,
                "git_branch": vcs_info.branch,
            },
            "code_version_info_schema": 1,
        }
        key = {
            "project_id": project_id,
            "dag_hash": dag_hash,
            "code_hash": code_hash,
            "dag_name": name,
        }

        # The server looks before it inserts: of two runs that register the same new DAG at
        # once, one gets an error 500, and finds the other's when it looks again.
        @retry_server_errors
        def register() -> int:
            found = self._request("GET", "/dag_templates/exists/", params=key)
            if found is None:
                found = self._request(
                    "POST", "/dag_templates", params={"project_id": project_id}, json=body
                )
            return int(found["id"])

        return self._wait(register)

    def create_and_start_dag_run(
        self, dag_template_id: int, tags: dict[str, str], inputs: dict[str, Any], outputs: list[str]
    ) -> int:
        """Open a run of the DAG and return its id; the inputs are such as `Shown` returns."""
        body = {
            "run_start_time": _now(),
            "tags": tags,
            "inputs": inputs,
            "outputs": outputs,
            "run_status": "RUNNING",
        }
        run = self._wait(
            lambda: self._request(
                "POST", "/dag_runs", params={"dag_template_id": dag_template_id}, json=body
            )
        )
        return int(run["id"])

    def update_tasks(
        self,
        dag_run_id: int,
        attributes: list[dict[str, Any]],
        task_updates: list[dict[str, Any]],
        in_samples: list[bool] | None = None,
    ) -> None:
        """Keep updates of nodes for the next sending. All are sampled: see `BestEffortTracker`."""
        update = {
            "dag_run_id": dag_run_id,
            "attributes": attributes,
            "task_updates": task_updates,
        }
        with self._updates_lock:
            self._updates.append(update)

    def log_dag_run_end(self, dag_run_id: int, status: str) -> None:
        """Send what is left of the nodes, then the end of the run."""
        body = {"run_status": status, "run_end_time": _now()}

        def end() -> None:
            self._flush()
            self._request("PUT", f"/dag_runs/{dag_run_id}/", json=body)

        self._wait(end)

    # In the thread.

    def _work(self) -> None:
        with self._api:
            while True:
                try:
                    item = self._requests.get(timeout=FLUSH_INTERVAL)
                except queue.Empty:
                    self._flush_meanwhile()
                    continue
                if item is None:
                    return
                future, request = item
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    future.set_result(request())
                except Exception as error:
                    future.set_exception(error)

    def _flush_meanwhile(self) -> None:
        # On failure the updates are kept; the end of the run decides whether tracking failed, and
        # says why. An update that is no JSON must not end this thread.
        with contextlib.suppress(Exception):
            self._flush()

    def _flush(self) -> None:
        with self._updates_lock:
            batch, self._updates = self._updates, []
        try:
            for dag_run_id in {update["dag_run_id"] for update in batch}:
                attributes, task_updates = clients.create_batch(batch, dag_run_id)
                self._request(
                    "PUT",
                    "/dag_runs_bulk",
                    params={"dag_run_id": dag_run_id},
                    json={
                        "attributes": make_json_safe(attributes),
                        "task_updates": make_json_safe(task_updates),
                    },
                )
                batch = [update for update in batch if update["dag_run_id"] != dag_run_id]
        finally:
            with self._updates_lock:
                self._updates = batch + self._updates

    def _request(self, method: str, path: str, json: Any = None, **content: Any) -> Any:
        body = None if json is None else masked(json)
        try:
            return self._api.request(method, path, json=body, **content)
        except RefusedError as error:
            raise self._unknown_project() from error

    # In the caller's thread.

    def _wait(self, request: Callable[[], T]) -> T:
        future: Future[T] = Future()
        self._requests.put((future, request))
        started = time.monotonic()
        try:
            return future.result(timeout=self._shared.patience)
        except TimeoutError as error:
            future.cancel()
            raise self._api.no_answer() from error
        finally:
            self._shared.waited(time.monotonic() - started)

    def _unknown_project(self) -> HamiltonError:
        project, user = self._settings.project_id, self._settings.username
        return HamiltonError(
            f"project {project} does not exist at {self._api.shown} or user {user!r} "
            f"may not write to it; create it at {self._settings.ui_url}/dashboard/projects or "
            "correct HAMILTON_UI_PROJECT_ID"
        )


class BestEffortTracker(HamiltonTracker):  # type: ignore[misc]  # the SDK has no type hints
    """The SDK's tracker; the first failure of a hook ends the tracking, never the dataflow.

    `on_started` gets the id of each run when it has been opened, `on_failure` each failure.
    Raises what the first contact with the server raises.
    """

    def __init__(
        self,
        settings: Settings,
        sender: Sender,
        shared: FlowRunTracking,
        *,
        dag_name: str,
        tags: dict[str, str],
        on_started: Callable[[int], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._shared = shared
        self._on_started = on_started
        self._on_failure = on_failure
        self._held_secret = False
        super().__init__(
            project_id=settings.project_id,
            username=settings.username,
            dag_name=dag_name,
            tags=tags,
            client_factory=lambda *_args, **_options: sender,
            hamilton_api_url=settings.api_url,
            hamilton_ui_url=settings.ui_url,
        )

    def post_graph_construct(self, **event: Any) -> None:
        """Register the DAG version."""
        self._guard(super().post_graph_construct, event)

    def pre_graph_execute(self, **event: Any) -> None:
        """Open a run and report its permalink."""
        hamilton_run_id = self._guard(self._open_run, event)
        if hamilton_run_id is not None:
            self._on_started(hamilton_run_id)

    def pre_node_execute(self, **event: Any) -> None:
        """Note the start of a node."""
        self._guard(super().pre_node_execute, event)

    def post_node_execute(self, **event: Any) -> None:
        """Note the end of a node and a summary of its result."""
        event |= _interruption()
        self._guard(self._end_node, event)

    def post_graph_execute(self, **event: Any) -> None:
        """Send the last nodes and close the run."""
        event |= _interruption()
        self._guard(super().post_graph_execute, event)

    def _open_run(self, **event: Any) -> int:
        with self._summing_up() as shown:
            inputs = shown.inputs(event["inputs"] or {})
            for further in (event["overrides"], event["graph"].config):
                shown.inputs(further or {})
        return int(super().pre_graph_execute(**event | {"inputs": inputs}))

    def _end_node(self, **event: Any) -> None:
        if not event["success"]:
            if self._held_secret:
                event["error"] = without_message(event["error"])
            super().post_node_execute(**event)
        elif self._shared.may_sum_up:
            with self._summing_up() as shown:
                event["result"] = shown.result(event["node_"].name, event["result"])
                super().post_node_execute(**event)
        else:
            super().post_node_execute(**event | {"result": NOT_SUMMED_UP})

    @contextlib.contextmanager
    def _summing_up(self) -> Iterator[Shown]:
        shown = Shown()
        started = time.monotonic()
        try:
            yield shown
        finally:
            self._shared.summed_up(time.monotonic() - started)
            self._held_secret = self._held_secret or shown.held_secret

    def _guard(self, hook: Callable[..., T], event: dict[str, Any]) -> T | None:
        if self._shared.given_up:
            return None
        try:
            return hook(**event)
        except Exception as error:
            self._on_failure(error)
            return None


def _interruption() -> dict[str, Any]:
    """Correct an event that reports success while a signal (Ctrl-C, SIGTERM) ends the dataflow.

    Hamilton only looks for an `Exception` and reports success for anything else.
    """
    error = sys.exception()
    if error is None or isinstance(error, Exception):
        return {}
    return {"success": False, "error": error}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()
