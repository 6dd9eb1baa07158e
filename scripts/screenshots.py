"""Take the screenshots of the docs from a running demo: `make demo KEEP=1`, `make screenshots`.

Drives the Chromium on PATH with Playwright, and writes PNG files of 256 colours to docs/images/.
"""

import io
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer
from rich.console import Console

from scripts import demo, local_profile
from scripts.local_profile import Profile, ProfileError

if TYPE_CHECKING:
    from playwright.sync_api import Page

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True)

FOLDER = local_profile.ROOT / "docs" / "images"
WIDTH, HEIGHT = 1280, 720
MAX_BYTES = 150_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TASK = "train-and-evaluate-model-task"


@dataclass(frozen=True)
class Demo:
    """The profile with the runs of the demo, and its UIs in a browser."""

    profile: Profile
    page: "Page"

    def latest(self, deployment: str, state: str = "Completed") -> str:
        """Return the id of the latest flow run of a deployment. Raises ProfileError."""
        found = self._filter(
            "flow_runs",
            deployments={"name": {"any_": [deployment.split("/")[1]]}},
            flow_runs={"state": {"name": {"any_": [state]}}},
            sort="START_TIME_DESC",
        )
        if not found:
            raise ProfileError(f"No run of {deployment} is {state}: run make demo KEEP=1 first.")
        return str(found[0]["id"])

    def artifact(self, flow_run_id: str, key: str) -> dict[str, Any]:
        """Return the artifact of a flow run with this key."""
        run = {"id": {"any_": [flow_run_id]}}
        return self._filter("artifacts", flow_runs=run, artifacts={"key": {"any_": [key]}})[0]

    def _filter(self, kind: str, **filters: Any) -> list[dict[str, Any]]:
        with self.profile.client() as http:
            answer = http.post(f"/{kind}/filter", json=filters).raise_for_status()
        found: list[dict[str, Any]] = answer.json()
        return found

    def open(self, path: str, text: str) -> None:
        """Open a view of the Prefect UI, and wait until it shows the text."""
        self.page.goto(f"{self.profile.ui_url}{path}")
        self.page.get_by_text(text).first.wait_for()
        self.page.wait_for_load_state("networkidle")


def flow_runs(demo_: Demo) -> None:
    """Show the list of all flow runs."""
    demo_.open("/runs", "ui-walkthrough-retries")


def flow_run(demo_: Demo) -> None:
    """Show a flow run with its task runs and logs."""
    run = demo_.latest(demo.LOCAL.absenteeism)
    demo_.open(f"/runs/flow-run/{run}", TASK.replace("-", "_"))


def dataflow(demo_: Demo) -> None:
    """Show the graph of a task's dataflow in the Prefect UI."""
    run = demo_.latest(demo.LOCAL.absenteeism)
    artifact = demo_.artifact(run, f"hamilton-dag-{TASK}")
    demo_.open(f"/artifacts/artifact/{artifact['id']}", "Hamilton DAG")
    demo_.page.locator("img[src^='data:image/png']").wait_for()


def hamilton_ui(demo_: Demo) -> None:
    """Show when the nodes of the same execution ran, and their types, in the Hamilton UI."""
    run = demo_.latest(demo.LOCAL.absenteeism)
    link = str(demo_.artifact(run, f"hamilton-run-{TASK}")["data"])
    (address,) = set(re.findall(r"http://[^\s)\]>]+/runs/\d+", link))
    page = demo_.page
    page.goto(demo_.profile.hamilton_url)
    page.locator("input").first.fill(demo.HAMILTON_USER)
    page.keyboard.press("Enter")
    page.get_by_text(f"Username: {demo.HAMILTON_USER}").wait_for()
    page.goto(address)
    page.get_by_text(re.compile("success", re.IGNORECASE)).first.wait_for()
    page.wait_for_load_state("networkidle")
    page.get_by_text("Outputs").first.evaluate("element => element.scrollIntoView()")


SHOTS: dict[str, Callable[[Demo], None]] = {
    "flow-runs": flow_runs,
    "flow-run": flow_run,
    "dataflow": dataflow,
    "hamilton-ui": hamilton_ui,
}


@app.command()
def main(
    folder: Annotated[Path, typer.Option(file_okay=False, help="Folder to write to.")] = FOLDER,
    only: Annotated[str, typer.Option(help=f"One of {', '.join(SHOTS)}; all if omitted.")] = "",
) -> None:
    """Write the screenshots of the docs from a running demo."""
    from playwright.sync_api import Error, sync_playwright  # development only

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    running = local_profile.running(local_profile.state_folder())
    try:
        if program is None:
            raise ProfileError(f"No browser is on PATH: install one of {', '.join(BROWSERS)}.")
        if running is None:
            raise ProfileError("The local profile is not running: run make demo KEEP=1 first.")
        if only and only not in SHOTS:
            raise ProfileError(f"There is no screenshot {only}: choose one of {', '.join(SHOTS)}.")
        folder.mkdir(parents=True, exist_ok=True)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            log_in(page, running.profile)
            for name in [only] if only else SHOTS:
                SHOTS[name](Demo(running.profile, page))
                save(page.screenshot(animations="disabled"), folder / f"{name}.png")
            browser.close()
    except (ProfileError, Error, httpx.HTTPError) as error:
        console.print(f"[red]{str(error).partition(chr(10))[0]}[/]")
        raise typer.Exit(1) from None


def log_in(page: "Page", profile: Profile) -> None:
    """Log in to the Prefect UI with the password of the profile."""
    page.goto(profile.ui_url)
    field = page.locator("input[type=password]")
    field.fill(profile.auth_string)
    page.get_by_role("button", name="Login").click()
    field.wait_for(state="detached")


def save(png: bytes, path: Path) -> None:
    """Write an image with 256 colours. Raises ProfileError if the file is too large."""
    from PIL import Image  # development only

    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ProfileError(f"{path} has {size:,} bytes, more than {MAX_BYTES:,}.")
    console.print(f"{path} ({size:,} bytes)")


if __name__ == "__main__":
    app(prog_name="python -m scripts.screenshots")
