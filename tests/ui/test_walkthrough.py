"""The Prefect UI and the Hamilton UI in a real browser, after `make demo KEEP=1`."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from scripts import local_profile
from tests import first_start, prefect_views, services
from tests.browser import PATIENCE, log_in, opens, shows

pytestmark = [
    pytest.mark.browser,
    pytest.mark.services,
    pytest.mark.timeout(900),
]


@dataclass
class Demo:
    """The profile that the demo left running; UI and API have separate ports."""

    prefect: str
    api_url: str
    hamilton: str
    printed: str
    auth_string: str

    @cached_property
    def ui(self) -> str:
        """Where the UI that opens by default has its views."""
        return self.prefect + prefect_views.default_ui(self.prefect)

    def api(self, path: str, **body: Any) -> Any:
        user, _, password = self.auth_string.partition(":")
        answer = httpx.post(f"{self.api_url}{path}", json=body, auth=(user, password), timeout=30)
        return answer.raise_for_status().json()

    def run(self, deployment: str, state: str) -> dict[str, Any]:
        """The latest flow run of the deployment in this state."""
        found = self.api(
            "/flow_runs/filter",
            deployments={"name": {"any_": [deployment]}},
            flow_runs={"state": {"name": {"any_": [state]}}},
            sort="START_TIME_DESC",
        )
        return dict(found[0])

    def artifact(self, key: str, run: dict[str, Any]) -> dict[str, Any]:
        (found,) = self.api(
            "/artifacts/filter",
            artifacts={"key": {"any_": [key]}},
            flow_runs={"id": {"any_": [run["id"]]}},
        )
        return dict(found)


@pytest.fixture(scope="module")
def demo(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Run the demo on free ports with a separate state folder."""
    state = tmp_path_factory.mktemp("state")
    first_start.profile(state)
    environment = os.environ | {"PREFECT_HAMILTON_STATE": str(state)}
    port, api_port, hamilton_port = (services.free_port() for _ in range(3))

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *words],
            cwd=services.ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )

    ports = ["--port", str(port), "--api-port", str(api_port)]
    ports += ["--hamilton-port", str(hamilton_port)]
    try:
        done = python("scripts.demo", "--keep", "--timeout", "480", *ports)
        assert done.returncode == 0, done.stdout + done.stderr
        yield Demo(
            prefect=f"http://127.0.0.1:{port}",
            api_url=f"http://127.0.0.1:{api_port}/api",
            hamilton=f"http://127.0.0.1:{hamilton_port}",
            printed=done.stdout,
            auth_string=local_profile.Profile(state=state).auth_string,
        )
    finally:
        python("scripts.local", "down")


@pytest.fixture(autouse=True)
def logged_in(demo: Demo, page: Page) -> None:
    log_in(page, demo.prefect, demo.auth_string)


def test_the_demo_prints_results_and_links(demo: Demo) -> None:
    assert "All results are as expected" in demo.printed
    assert f"{demo.prefect}/dashboard" in demo.printed
    assert re.search(r"warehouse\.prod\.metrics\W+5,844", demo.printed)


def test_the_address_alone_opens_the_default_ui(demo: Demo, page: Page) -> None:
    opens(page, demo.prefect, "local-process-pool")
    assert page.url.startswith(f"{demo.ui}/")


@pytest.mark.parametrize("base", prefect_views.UIS.values(), ids=prefect_views.UIS)
def test_no_prefect_view_sends_third_party_requests(
    demo: Demo, page: Page, requested: set[str], base: str
) -> None:
    found = prefect_views.objects(demo.api, "absenteeism-local")

    prefect_views.walk(page, demo.prefect, base, found)

    assert requested == {urlsplit(address).netloc for address in (demo.prefect, demo.api_url)}


@pytest.mark.parametrize("base", prefect_views.UIS.values(), ids=prefect_views.UIS)
def test_every_block_type_has_a_picture(demo: Demo, page: Page, base: str) -> None:
    count = len(demo.api("/block_types/filter"))
    opens(page, f"{demo.prefect}{base}/blocks/catalog", f"{count} Blocks")
    pictures = page.locator("img[src^='data:image/svg']")
    expect(pictures).to_have_count(count, timeout=PATIENCE)
    for picture in pictures.all():
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("image => image.naturalWidth") > 0


@pytest.mark.parametrize("base", prefect_views.UIS.values(), ids=prefect_views.UIS)
def test_a_picture_from_another_host_is_linked_but_not_loaded(
    demo: Demo, page: Page, requested: set[str], base: str
) -> None:
    picture = "https://pictures.example.org/plot.png"
    artifact = demo.api("/artifacts/", key="plot", type="image", data=picture)
    page.goto(f"{demo.prefect}{base}/artifacts/artifact/{artifact['id']}")
    expect(page.get_by_title("Not loaded from pictures.example.org")).to_be_visible()
    assert "pictures.example.org" not in requested


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("/dashboard", ["Flow Runs", "local-process-pool", "Failed"]),
        ("/runs", ["Enterprise Data Pipeline", "ui-walkthrough-retries", "demo-"]),
        ("/flows", ["Metrics Quality Report", "Failed Run Report", "1 Deployment"]),
        ("/deployments", ["production-etl", "absenteeism-local", "walkthrough", "At 09:00 AM"]),
        ("/work-pools", ["local-process-pool", "Process"]),
        ("/blocks", ["flow-results", "warehouse-url", "Secret"]),
        ("/variables", ["anomaly_z_threshold", "max_rejected_ratio", "0.05"]),
        ("/automations", ["report-failed-runs", "on-failure", "after-production-etl"]),
        ("/events", ["Flow run", re.compile("prefect.flow-run|flows.task.measured")]),
        ("/concurrency-limits", ["warehouse-writes", "tag:model-training"]),
        ("/artifacts", ["absenteeism-results", "pipeline-preview", "pipeline-load-progress"]),
    ],
    ids=lambda value: value.strip("/") if isinstance(value, str) else "",
)
def test_the_pages_are_not_empty(
    demo: Demo, page: Page, path: str, texts: list[str | re.Pattern[str]]
) -> None:
    opens(page, demo.ui + path, *texts)


def test_a_run_that_succeeded_after_a_retry_is_shown(demo: Demo, page: Page) -> None:
    run = demo.run("walkthrough", "Completed")
    opens(page, f"{demo.ui}/runs/flow-run/{run['id']}", "Completed", "2 Task runs", "walkthrough")
    # The graph is a canvas: the retry is in the log, attempt by attempt.
    shows(page, re.compile(r"flaky_transform"), re.compile(r"[Rr]etry"))


def test_a_run_that_exhausted_its_retries_is_shown(demo: Demo, page: Page) -> None:
    run = demo.run("walkthrough", "Failed")
    opens(
        page,
        f"{demo.ui}/runs/flow-run/{run['id']}",
        "Failed",
        re.compile("[Rr]etries exhausted"),
    )


def test_the_run_form_explains_its_parameters(demo: Demo, page: Page) -> None:
    (deployment,) = demo.api(
        "/deployments/filter", deployments={"name": {"any_": ["production-etl"]}}
    )
    opens(
        page,
        f"{demo.ui}/deployments/deployment/{deployment['id']}/run",
        "source_url",
        "batch_size",
        "Number of rows per transaction",
    )


@pytest.mark.parametrize("task", ["prepare_data_task", "train_and_evaluate_model_task"])
def test_the_graph_of_a_dataflow_is_a_picture_in_prefect(demo: Demo, page: Page, task: str) -> None:
    run = demo.run("absenteeism-local", "Completed")
    artifact = demo.artifact(f"hamilton-dag-{task.replace('_', '-')}", run)
    opens(
        page,
        f"{demo.ui}/artifacts/artifact/{artifact['id']}",
        f"Hamilton DAG: {task} execution",
    )
    picture = page.locator("img[src^='data:image/png']")
    expect(picture).to_be_visible(timeout=PATIENCE)
    width, height = picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert width > 400 and height > 100


def test_the_scores_and_the_rows_are_in_the_artifacts(demo: Demo, page: Page) -> None:
    results = demo.artifact("absenteeism-results", demo.run("absenteeism-local", "Completed"))
    opens(
        page,
        f"{demo.ui}/artifacts/artifact/{results['id']}",
        re.compile("[Bb]aseline"),
        re.compile("mean absolute error", re.I),
    )
    preview = demo.artifact("pipeline-preview", demo.run("production-etl", "Completed"))
    opens(page, f"{demo.ui}/artifacts/artifact/{preview['id']}", "metric", "value")


def test_hamilton_ui_shows_the_run_that_prefect_links_to(demo: Demo, page: Page) -> None:
    run = demo.run("absenteeism-local", "Completed")
    artifact = demo.artifact("hamilton-run-prepare-data-task", run)
    (address,) = set(re.findall(r"http://[^\s)\]>]+/runs/\d+", artifact["data"]))
    assert address.startswith(demo.hamilton)
    page.goto(demo.hamilton)
    page.locator("input").first.fill("prefect")
    page.keyboard.press("Enter")
    shows(page, "Username: prefect")
    opens(page, f"{demo.hamilton}/dashboard/projects", "Prefect flows")
    opens(page, address, "prefect_prepare_data_task", re.compile("success", re.I))
    opens(
        page,
        address.rsplit("/", 1)[0],
        "prefect_prepare_data_task",
        "prefect_train_and_evaluate_model_task",
    )
