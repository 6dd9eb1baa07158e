"""Where a flow run is tracked, and how long it may wait for the Hamilton UI."""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from prefect_hamilton._hamilton_api import HamiltonError, check_url

DEFAULT_URL = "http://localhost:8241"

PATIENCE = 6.0
"""Seconds that one flow run may wait for the Hamilton UI, all its tasks together."""

FREE_WAIT = 0.25
"""Seconds of a single call that do not count: a healthy server's answers never use PATIENCE up."""

SUMMARY_TIME = 3.0
"""Seconds that one flow run may spend on summaries of inputs and results; later ones get none."""


@dataclass(frozen=True)
class Settings:
    """Where and as whom to track. Raises HamiltonError if the environment is invalid."""

    username: str
    project_id: int
    api_url: str = field(repr=False)
    ui_url: str
    api_key: str | None = field(repr=False)

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Settings | None":
        """Read the environment; None when tracking is not asked for."""
        username = env.get("HAMILTON_UI_USERNAME", "").strip()
        project = env.get("HAMILTON_UI_PROJECT_ID", "").strip()
        if not username and not project:
            return None
        if not username or not project:
            missing = "HAMILTON_UI_PROJECT_ID" if username else "HAMILTON_UI_USERNAME"
            raise HamiltonError(f"{missing} is not set (both it and its counterpart are needed)")
        if not project.isdecimal():
            raise HamiltonError(f"HAMILTON_UI_PROJECT_ID must be a number, not {project!r}")
        api_url = env.get("HAMILTON_API_URL") or DEFAULT_URL
        ui_url = env.get("HAMILTON_UI_URL") or DEFAULT_URL
        check_url("HAMILTON_API_URL", api_url)
        # Links are published: they hold no password.
        public = check_url("HAMILTON_UI_URL", ui_url).copy_with(userinfo=b"")
        return cls(
            username=username,
            project_id=int(project),
            api_url=api_url.rstrip("/"),
            ui_url=str(public).rstrip("/"),
            api_key=env.get("HAMILTON_API_KEY") or None,
        )


class FlowRunTracking:
    """What the tasks of one flow run share: the time left and whether tracking was given up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._patience = PATIENCE
        self._summary_time = SUMMARY_TIME
        self.given_up = False
        self.project_checked = False

    @property
    def patience(self) -> float:
        """Seconds that may still be waited."""
        return self._patience

    @property
    def may_sum_up(self) -> bool:
        """Whether there is time left for summaries of inputs and results."""
        return self._summary_time > 0

    def summed_up(self, seconds: float) -> None:
        """Count `seconds` that a summary took."""
        with self._lock:
            self._summary_time -= seconds

    def waited(self, seconds: float) -> None:
        """Count a wait of `seconds`."""
        with self._lock:
            self._patience = max(0.0, self._patience - max(0.0, seconds - FREE_WAIT))

    def give_up(self) -> bool:
        """Stop tracking; True for the first caller only, which is the one that warns."""
        with self._lock:
            first, self.given_up = not self.given_up, True
            return first
