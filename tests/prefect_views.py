"""All views of Prefect's two UIs, and a walk through them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from playwright.sync_api import Page

from tests.browser import PATIENCE, opens

UIS = {"v1": "", "v2": "/v2"}
"""Where each UI has its views."""

VIEWS: dict[str, str] = {
    "/dashboard": "{work_pool}",
    "/runs": "{flow_run_name}",
    "/runs/flow-run/$id": "{flow_run_name}",
    "/runs/task-run/$id": "{task_run_name}",
    "/flows": "{flow_name}",
    "/flows/flow/$id": "{flow_name}",
    "/deployments": "{deployment_name}",
    "/deployments/deployment/$id": "{deployment_name}",
    "/deployments/deployment/$id/run": "{deployment_name}",
    "/deployments/deployment/$id/edit": "{deployment_name}",
    "/deployments/deployment/$id/duplicate": "{deployment_name}",
    "/work-pools": "{work_pool}",
    "/work-pools/create": "Process",
    "/work-pools/work-pool/$workPoolName": "{work_pool}",
    "/work-pools/work-pool/$workPoolName/edit": "{work_pool}",
    "/work-pools/work-pool/$workPoolName/queue/create": "{work_pool}",
    "/work-pools/work-pool/$workPoolName/queue/$workQueueName": "default",
    "/work-pools/work-pool/$workPoolName/queue/$workQueueName/edit": "default",
    "/blocks": "{block_name}",
    "/blocks/block/$id": "{block_name}",
    "/blocks/block/$id/edit": "{block_name}",
    "/blocks/catalog": "Slack Webhook",
    "/blocks/catalog/$slug": "Secret",
    "/blocks/catalog/$slug/create": "Secret",
    "/variables": "max_rejected_ratio",
    "/automations": "{automation_name}",
    "/automations/automation/$id": "{automation_name}",
    "/automations/automation/$id/edit": "{automation_name}",
    "/automations/create": "Trigger",
    "/events": "Event Feed",
    "/events/event/$eventDate/$eventId": "prefect.flow-run",
    "/concurrency-limits": "warehouse-writes",
    "/concurrency-limits/concurrency-limit/$id": "{limit_tag}",
    "/artifacts": "{artifact_key}",
    "/artifacts/artifact/$id": "{artifact_key}",
    "/artifacts/key/$key": "{artifact_key}",
    "/settings": "Settings",
}
"""The views' paths, as Prefect's router has them, and what each shows of the objects there."""

Post = Callable[..., Any]


@dataclass(frozen=True)
class Objects:
    """What there is to look at, one object for each kind of view: what the walkthrough leaves."""

    ids: dict[str, str]
    names: dict[str, str]

    def address(self, path: str) -> str:
        """The path with the objects' own ids and names in place of its parameters."""
        kind = path.strip("/").split("/")[1] if path.count("/") > 1 else ""
        filled = path.replace("$id", self.ids.get(kind, ""))
        return re.sub(r"\$(\w+)", lambda match: self.names[match[1]], filled)

    def text(self, path: str) -> str:
        """What the view of this path shows."""
        return VIEWS[path].format_map(self.names)


def objects(post: Post, deployment: str) -> Objects:
    """Look up what the views show: a completed run of the deployment and what belongs to it."""

    def first(kind: str, **filters: Any) -> Any:
        return post(f"/{kind}/filter", **filters)[0]

    deployed = first("deployments", deployments={"name": {"any_": [deployment]}})
    run = first(
        "flow_runs",
        deployments={"id": {"any_": [deployed["id"]]}},
        flow_runs={"state": {"type": {"any_": ["COMPLETED"]}}},
        sort="START_TIME_DESC",
    )
    of_run = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    flow, task_run = first("flows", **of_run), first("task_runs", **of_run)
    artifact = next(found for found in post("/artifacts/filter", **of_run) if found["key"])
    block, automation = first("block_documents"), first("automations")
    limit = first("concurrency_limits")
    event = post(
        "/events/filter",
        filter={"resource": {"id": [f"prefect.flow-run.{run['id']}"]}},
    )["events"][0]
    return Objects(
        ids={
            "flow-run": run["id"],
            "task-run": task_run["id"],
            "flow": flow["id"],
            "deployment": deployed["id"],
            "block": block["id"],
            "automation": automation["id"],
            "concurrency-limit": limit["id"],
            "artifact": artifact["id"],
        },
        names={
            "flow_run_name": run["name"],
            "task_run_name": task_run["name"],
            "flow_name": flow["name"],
            "deployment_name": deployed["name"],
            "work_pool": deployed["work_pool_name"],
            "workPoolName": deployed["work_pool_name"],
            "workQueueName": deployed["work_queue_name"],
            "block_name": block["name"],
            "slug": "secret",
            "automation_name": automation["name"],
            "limit_tag": limit["tag"],
            "artifact_key": artifact["key"],
            "key": artifact["key"],
            "eventDate": event["occurred"][:10],
            "eventId": event["id"],
        },
    )


def default_ui(prefect: str) -> str:
    """Where the UI that opens by default has its views, below the server's address."""
    settings = httpx.get(f"{prefect}/ui-settings", timeout=30).raise_for_status().json()
    return UIS[settings["default_ui"]]


def walk(page: Page, prefect: str, base: str, found: Objects) -> None:
    """Open every view of the UI at this base path and wait until it asks for nothing more."""
    for path in VIEWS:
        opens(page, f"{prefect}{base}{found.address(path)}", found.text(path))
        page.wait_for_load_state("networkidle", timeout=PATIENCE)
        assert urlsplit(page.url).path.startswith("/v2/") == (base == UIS["v2"])
