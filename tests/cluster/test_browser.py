"""Both UIs of the cluster in a browser, after the demo.

Before test_team, whose repository replaces the deployments of the demo.
"""

import re
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page

from tests import prefect_views
from tests.browser import opens, shows
from tests.clusters import Cluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("demo"),
]


def log_in_to_prefect(cluster: Cluster, page: Page) -> None:
    page.goto(f"http://localhost:{cluster.port}/dashboard")
    page.locator("input[type=password]").fill(cluster.secret("auth", "auth-string"))
    page.keyboard.press("Enter")
    shows(page, "Flow Runs")


def log_in_to_hamilton(cluster: Cluster, page: Page) -> None:
    page.goto(f"http://localhost:{cluster.hamilton_port}")
    page.locator("input").first.fill("prefect")
    # The arrow unfolds the field for the key.
    page.locator("form svg").first.click()
    page.locator("input[type=password]").fill(cluster.secret("hamilton-ui", "api-key"))
    page.keyboard.press("Enter")
    shows(page, "Username: prefect")


def latest(cluster: Cluster, deployment: str, state: str) -> Any:
    found = cluster.post(
        "/flow_runs/filter",
        deployments={"name": {"any_": [deployment]}},
        flow_runs={"state": {"name": {"any_": [state]}}},
        sort="START_TIME_DESC",
    )
    return found[0]


def test_the_prefect_ui_requires_the_password_and_shows_the_runs(
    cluster: Cluster, page: Page, requested: set[str]
) -> None:
    log_in_to_prefect(cluster, page)
    run = latest(cluster, "walkthrough-k8s", "Completed")
    prefect = f"http://localhost:{cluster.port}"
    base = prefect_views.default_ui(prefect)
    for path, texts in {
        "/runs": ["Enterprise Data Pipeline", "demo-"],
        "/deployments": ["production-etl-k8s", "absenteeism-k8s", "At 09:00 AM"],
        "/work-pools": ["kubernetes"],
        "/automations": ["report-failed-runs"],
        f"/runs/flow-run/{run['id']}": ["Completed", re.compile("flaky_transform")],
    }.items():
        opens(page, prefect + base + path, *texts)
    assert requested == {urlsplit(prefect).netloc}


def test_hamilton_shows_the_run_that_prefect_links_to(
    cluster: Cluster, page: Page, requested: set[str]
) -> None:
    run = latest(cluster, "absenteeism-k8s", "Completed")
    (artifact,) = cluster.post(
        "/artifacts/filter",
        artifacts={"key": {"any_": ["hamilton-run-prepare-data-task"]}},
        flow_runs={"id": {"any_": [run["id"]]}},
    )
    (address,) = set(re.findall(r"http://[^\s)\]>]+/runs/\d+", artifact["data"]))
    assert address.startswith(f"http://localhost:{cluster.hamilton_port}/")
    log_in_to_hamilton(cluster, page)
    opens(page, address, "prefect_prepare_data_task", re.compile("success", re.I))
    assert requested == {f"localhost:{cluster.hamilton_port}"}
