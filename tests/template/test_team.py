"""A team's repository on this machine: its own tests, the local profile, the deployments of CI."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from scripts import local_profile
from tests import services
from tests.profiles import LocalProfile
from tests.template.conftest import run

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]


def test_the_tests_of_the_repository_pass_in_its_environment(team: Path) -> None:
    said = run(str(team / ".venv/bin/pytest"), "-q", folder=team)
    assert "5 passed" in said


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory, team: Path) -> Iterator[LocalProfile]:
    """The local profile of `make up FLOWS=…`."""
    profile = LocalProfile(tmp_path_factory.mktemp("state"))
    try:
        started = profile.up("--flows", str(team))
        assert started.returncode == 0, started.stdout + started.stderr
        assert "1 deployment in the work pool local-process-pool" in started.stdout
        assert "prefect deployment run daily-revenue/daily-revenue\n" in started.stdout
        profile.log_in()
        yield profile
    finally:
        profile.run("down")


def test_a_run_completes_in_its_environment_and_leaves_graph_and_links(
    profile: LocalProfile, team: Path
) -> None:
    run = profile.trigger("daily-revenue/daily-revenue", "first")
    assert profile.ended(run) == "Completed"
    of_run = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    found = profile.api.post("/artifacts/filter", json=of_run).raise_for_status().json()
    # One without a key is a task's result.
    artifacts = {artifact["key"]: artifact["data"] for artifact in found if artifact["key"]}
    assert set(artifacts) == {
        "daily-revenue",
        "hamilton-dag-compute-revenue",
        "hamilton-run-compute-revenue",
    }
    assert "data:image/" in artifacts["hamilton-dag-compute-revenue"]
    # The link to the Hamilton UI names a run there, which links back to Prefect's.
    hamilton_url = f"http://127.0.0.1:{profile.hamilton_port}"
    link = artifacts["hamilton-run-compute-revenue"]
    assert f"]({hamilton_url}/dashboard/project/" in link
    hamilton_run = link.rpartition("/runs/")[2].rstrip(")")
    answer = httpx.get(
        f"{hamilton_url}/api/v1/dag_runs/{hamilton_run}", headers={"x-api-user": "prefect"}
    )
    tags = answer.raise_for_status().json()[0]["tags"]
    assert tags["prefect_flow_run_url"].startswith(f"http://127.0.0.1:{profile.port}/")
    assert tags["prefect_flow_run_url"].endswith(run["id"])


def test_the_flow_runs_with_the_packages_of_the_team(profile: LocalProfile, team: Path) -> None:
    deployment = profile.api.get("/deployments/name/daily-revenue/daily-revenue").json()
    python = deployment["job_variables"]["command"].split()[0]
    assert Path(python) == team / ".venv/bin/python"


def test_a_second_up_registers_what_changed(profile: LocalProfile, team: Path) -> None:
    file = team / "prefect.yaml"
    before = file.read_text()
    file.write_text(before.replace("name: daily-revenue\n", "name: renamed\n"))
    try:
        again = profile.up("--flows", str(team))
        assert again.returncode == 0, again.stderr
        assert f"Registered 1 deployment of {team}." in again.stdout
        assert profile.api.get("/deployments/name/daily-revenue/renamed").status_code == 200
        assert profile.api.get("/deployments/name/daily-revenue/daily-revenue").status_code == 404
    finally:
        file.write_text(before)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has no prefect.yaml"),
        ({"prefect.yaml": "deployments: []", "pyproject.toml": ""}, "run `uv sync` there"),
        (
            {"prefect.yaml": "deployments: []", "pyproject.toml": "", ".venv/bin/prefect": ""},
            "has no prefect-hamilton",
        ),
        ({"prefect.yaml": "deployments: []"}, "no deployment in the work pool local-process-pool"),
        ({"prefect.yaml": "name: x"}, "does not define deployments"),
        ({"prefect.yaml": "a: ["}, "does not define deployments"),
    ],
)
def test_an_unprepared_flows_folder_is_refused_with_the_fix(
    tmp_path: Path, files: dict[str, str], said: str
) -> None:
    folder = tmp_path / "flows"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    profile = LocalProfile(tmp_path / "state", new=True)
    done = profile.up("--flows", str(folder))
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not local_profile.processes(profile.state)


class Ci:
    """Runs the jobs of .github/workflows/deploy.yaml as GitHub does, against a Prefect server."""

    def __init__(self, team: Path, server: services.Service) -> None:
        self.team = team
        self.api = httpx.Client(base_url=f"{server.url}/api")
        self.jobs = yaml.safe_load((team / ".github/workflows/deploy.yaml").read_text())["jobs"]
        self.env = {
            "PREFECT_API_URL": f"{server.url}/api",
            "BOOTSTRAP_RELEASE": "ci/my-flows",
            "FLOWS_REPOSITORY": "https://git.example.org/team/my-flows.git",
            "PATH": f"{uv().parent}{os.pathsep}{os.environ['PATH']}",
        }

    def run(
        self,
        job: str,
        pull_request: int,
        commit: str,
        replaced: tuple[str, str] = ("", ""),
        code: int = 0,
        **more: str,
    ) -> str:
        """Run the steps of a job, the last of which ends with the code; returns its output."""
        *first, last = (step["run"] for step in self.jobs[job]["steps"] if "run" in step)
        (reference,) = self.jobs[job].get("env", {"FLOWS_COMMIT": ""})
        env = self.env | {"PULL_REQUEST": str(pull_request or ""), reference: commit} | more
        for step in first:
            run("bash", "-e", "-c", step, folder=self.team, **env)
        assert replaced[0] in last
        script = last.replace(*replaced) if replaced[0] else last
        return run("bash", "-e", "-c", script, folder=self.team, code=code, **env)

    def deployments(self) -> dict[str, Any]:
        found = self.api.post("/deployments/filter", json={}).raise_for_status().json()
        return {each["name"]: each for each in found}


def uv() -> Path:
    """The command whose `uv sync` made the repository's environment."""
    return Path(shutil.which("uv") or services.ROOT / ".cache/uv/bin/uv")


@pytest.fixture
def ci(team: Path, tmp_path: Path) -> Iterator[Ci]:
    with services.prefect_server(tmp_path / "server") as server:
        ci = Ci(team, server)
        pool = {"name": "kubernetes", "type": "kubernetes"}
        ci.api.post("/work_pools/", json=pool).raise_for_status()
        yield ci


def test_ci_deploys_main_and_a_preview_per_pull_request_until_that_closes(ci: Ci) -> None:
    ci.run("main", 0, "a" * 40)
    (deployment,) = ci.deployments().values()
    assert deployment["name"] == "daily-revenue-k8s"
    assert [each["schedule"]["cron"] for each in deployment["schedules"]] == ["0 6 * * *"]
    ((_, step),) = deployment["pull_steps"][0].items()
    assert step["repository"] == ci.env["FLOWS_REPOSITORY"]
    assert step["commit_sha"] == "a" * 40
    assert ci.run("plan", 12, "a" * 40) == "Plan: 0 created, 0 updated, 0 removed, 1 unchanged.\n"

    ci.run("preview", 12, "b" * 40)
    ci.run("preview", 13, "c" * 40)
    found = ci.deployments()
    assert set(found) == {"daily-revenue-k8s", "daily-revenue-pr-12", "daily-revenue-pr-13"}
    preview = found["daily-revenue-pr-12"]
    assert preview["schedules"] == []
    assert preview["pull_steps"][0]["prefect.deployments.steps.git_clone"]["commit_sha"] == "b" * 40

    ci.run("remove-preview", 12, "b" * 40)
    assert set(ci.deployments()) == {"daily-revenue-k8s", "daily-revenue-pr-13"}


def test_ci_prints_the_plan_of_a_pull_request_and_main_deletes_what_it_registered(
    ci: Ci, team: Path
) -> None:
    ci.run("main", 0, "a" * 40)

    file = team / "prefect.yaml"
    before = file.read_text()
    file.write_text(before.replace("name: daily-revenue-k8s\n", "name: renamed-k8s\n"))
    try:
        assert ci.run("plan", 12, "a" * 40).splitlines() == [
            "+ deployment daily-revenue/renamed-k8s",
            '+ schedule daily-revenue/renamed-k8s "0 6 * * *" UTC',
            "- deployment daily-revenue/daily-revenue-k8s",
            '- schedule daily-revenue/daily-revenue-k8s "0 6 * * *" UTC',
            "Plan: 1 created, 0 updated, 1 removed, 0 unchanged.",
        ]
        assert set(ci.deployments()) == {"daily-revenue-k8s"}
        ci.run("main", 0, "b" * 40)
        assert set(ci.deployments()) == {"renamed-k8s"}
    finally:
        file.write_text(before)


def test_ci_fails_if_the_plan_cannot_be_made(ci: Ci) -> None:
    mistake = ("--checkout .", "--chekout .")
    assert "No such option" in ci.run("plan", 12, "a" * 40, mistake, code=1)
    mistake = ("--checkout .", "--checkout /not/there")
    assert "does not exist" in ci.run("plan", 12, "a" * 40, mistake, code=1)
    no_api = {"PREFECT_API_URL": ci.env["PREFECT_API_URL"].removesuffix("/api")}
    assert "is not a Prefect API" in ci.run("plan", 12, "a" * 40, code=1, **no_api)
