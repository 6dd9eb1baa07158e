"""The commands of the local profile, as users run them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from scripts import local_profile
from tests import first_start, forks, services


class LocalProfile:
    """The commands of the profile with a separate state folder and ports.

    Its servers' databases are copies of migrated ones, unless it is `new`. `project` is the folder
    of this project, or a copy of it.
    """

    def __init__(self, state: Path, *, new: bool = False, project: Path = services.ROOT) -> None:
        self.state, self.project = state, project
        if not new:
            first_start.profile(state)
        self.port, self.hamilton_port = services.free_port(), services.free_port()
        self.api = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}/api",
            timeout=60,
            transport=services.BusyTransport(),
        )

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PREFECT_HAMILTON_STATE": str(self.state)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "scripts.local", *arguments],
            cwd=self.project,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def up(self, *options: str) -> subprocess.CompletedProcess[str]:
        ports = ["--port", str(self.port), "--hamilton-port", str(self.hamilton_port)]
        return self.run("up", *ports, *options)

    @property
    def auth_string(self) -> str:
        """User and password, as the file of the state folder holds them."""
        return (self.state / "prefect-auth-string").read_text().strip()

    def log_in(self) -> None:
        """From now on `api` knows the password."""
        user, _, password = self.auth_string.partition(":")
        self.api.auth = (user, password)

    def in_a_terminal(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a terminal after `eval "$(make -s env)"`."""
        options = f"--port {self.port} --hamilton-port {self.hamilton_port}"
        settings = f'eval "$({sys.executable} -m scripts.local env {options})"'
        return subprocess.run(
            ["bash", "-c", f"set -e; {settings}; {script}"],
            cwd=self.project,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def start_in_a_terminal(self, command: str) -> subprocess.Popen[bytes]:
        options = f"--port {self.port} --hamilton-port {self.hamilton_port}"
        settings = f'eval "$({sys.executable} -m scripts.local env {options})"'
        with (self.state / "terminal.log").open("ab") as log:
            return subprocess.Popen(
                ["bash", "-c", f"{settings}; exec {command}"],
                cwd=self.project,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @staticmethod
    def end(process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        process.wait(timeout=60)

    @property
    def log(self) -> Path:
        return self.state / "logs" / "profile.log"

    def prefect(self, *arguments: str) -> str:
        noted = local_profile.running(self.state)
        assert noted is not None
        done = forks.run("prefect", *arguments, env=noted.profile.environment())
        done.check_returncode()
        return done.stdout

    def trigger(self, deployment: str, name: str, *options: str) -> dict[str, Any]:
        self.prefect("deployment", "run", deployment, "--flow-run-name", name, *options)
        return self.runs(flow_runs={"name": {"any_": [name]}})[0]

    def create(self, deployment: str, **body: Any) -> dict[str, Any]:
        """Create a run over the API, which takes less time than the command line."""
        found = self.api.get(f"/deployments/name/{deployment}").raise_for_status().json()
        path = f"/deployments/{found['id']}/create_flow_run"
        run: dict[str, Any] = self.api.post(path, json=body).raise_for_status().json()
        return run

    def runs(self, **filters: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (
            self.api.post("/flow_runs/filter", json=filters).raise_for_status().json()
        )
        return found

    def state_of(self, run: dict[str, Any]) -> str:
        return str(self.api.get(f"/flow_runs/{run['id']}").raise_for_status().json()["state_name"])

    def ended(self, run: dict[str, Any]) -> str:
        final = ("Completed", "Failed", "Crashed", "Cancelled")
        wait_until(lambda: self.state_of(run) in final, seconds=240)
        return self.state_of(run)

    def task_runs(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        of_run = {"flow_runs": {"id": {"any_": [run["id"]]}}}
        found: list[dict[str, Any]] = (
            self.api.post("/task_runs/filter", json=of_run).raise_for_status().json()
        )
        return found

    def attempts(self, run: dict[str, Any]) -> int:
        return max(int(task["run_count"]) for task in self.task_runs(run))

    def process(self, command: str) -> psutil.Process:
        """The process of the profile that is this command, not a shell that starts it."""
        return next(
            process
            for process in local_profile.processes(self.state)
            if command in " ".join(process.cmdline()) and "while" not in process.cmdline()[-1]
        )


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    def quietly() -> bool:
        try:
            return condition()
        except (httpx.HTTPError, StopIteration, psutil.NoSuchProcess):
            return False

    Retrying(
        retry=retry_if_result(lambda held: not held),
        stop=stop_after_delay(seconds),
        wait=wait_fixed(0.3),
    )(quietly)
