"""The same load on the local profile, where each flow run is a process of the worker."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from scripts.local_profile import OWN_WORKER, WORK_POOL
from tests.faults.load import Load
from tests.faults.recorder import server
from tests.profiles import LocalProfile
from tests.services import ROOT

SERVER = "prefect_hamilton.server"
WORKER = OWN_WORKER
NOTICE_SECONDS = 2
"""Within which processes of flow runs end after their worker; some begin their flow meanwhile."""


@contextmanager
def recording(folder: Path) -> Iterator[str]:
    """The URL at which this process keeps rows."""
    recorder = server("127.0.0.1", 0, str(folder / "rows.sqlite"))
    thread = threading.Thread(target=recorder.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{recorder.server_port}/rows"
    finally:
        recorder.shutdown()
        recorder.server_close()


@dataclass
class LocalLoad(Load):
    """Deployments of load_flows.py in the local profile, and the runs that were created of them."""

    profile: LocalProfile = field(kw_only=True)
    recorder_url: str = field(kw_only=True)
    ends: list[float] = field(default_factory=list)
    """When processes of flow runs were killed with their worker."""

    def api(self) -> httpx.Client:
        return self.profile.api

    def where(self) -> dict[str, Any]:
        variables = {"env": {"FAULTS_RECORDER": self.recorder_url}}
        # With a path alone, Prefect would copy the whole checkout for each run.
        there = {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}
        return {"work_pool_name": WORK_POOL, "pull_steps": [there], "job_variables": variables}

    def rows(self) -> list[dict[str, Any]]:
        """Rows, in which each execution is a pod of its own; those that were killed are hit."""
        rows = list(httpx.get(self.recorder_url, timeout=60).raise_for_status().json())
        ended = {row["execution"]: row["arrived"] for row in rows if row["event"] == "end"}
        for row in rows:
            row["pod"] = row["execution"]
            until = ended.get(row["execution"], time.time())
            if row["event"] == "start" and self._was_killed(row["arrived"], until):
                self.hit.add(row["pod"])
                self.forced.add(row["pod"])
        return rows

    def ended_while_running(self, states: list[Any]) -> bool:
        """Whether the worker was killed while the run was Running."""
        times = {s["type"]: datetime.fromisoformat(s["timestamp"]).timestamp() for s in states}
        began, ended = times.get("RUNNING"), times.get("CRASHED")
        return began is not None and ended is not None and self._was_killed(began, ended)

    def _was_killed(self, began: float, until: float) -> bool:
        """Whether the worker was killed in this time, or just before it."""
        return any(began - NOTICE_SECONDS <= at <= until for at in self.ends)

    def processes(self, command: str) -> list[psutil.Process]:
        """The process of a command of the profile, and those that it has started."""
        process = self.profile.process(command)
        return [process, *process.children(recursive=True)]
