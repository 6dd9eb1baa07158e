"""Flow runs without a process: their states are proposed over the API."""

from typing import Any
from uuid import UUID

import httpx

from tests.services import BusyTransport

FINAL = ["COMPLETED", "FAILED", "CRASHED"]


class Api:
    """An API, asked without Prefect's client."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=f"{url}/api", timeout=30, transport=BusyTransport())

    def post(self, path: str, **body: Any) -> Any:
        return self._ask("POST", path, json=body)

    def post_list(self, path: str, content: list[Any]) -> None:
        self._ask("POST", path, json=content)

    def patch(self, path: str, **body: Any) -> None:
        self._ask("PATCH", path, json=body)

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def new_run(self) -> UUID:
        """A flow run that is scheduled for now."""
        flow = self.post("/flows/", name="waits")
        return UUID(self.post("/flow_runs/", flow_id=flow["id"], state={"type": "SCHEDULED"})["id"])

    def propose(
        self,
        run: UUID,
        type_: str,
        *,
        name: str | None = None,
        details: dict[str, Any] | None = None,
        force: bool = False,
        **headers: str,
    ) -> Any:
        """Propose a state; returns the answer's status: ACCEPT, REJECT or ABORT."""
        state = {"type": type_, "state_details": details or {}} | ({"name": name} if name else {})
        body = {"state": state, "force": force}
        answer = self._ask("POST", f"/flow_runs/{run}/set_state", json=body, headers=headers)
        return answer["status"]

    def state(self, run: UUID) -> Any:
        return self.get(f"/flow_runs/{run}")["state"]

    def states(self, run: UUID) -> list[str]:
        """Types of all states of the run, the first one first."""
        return [state["type"] for state in self.all_states(run)]

    def all_states(self, run: UUID) -> list[dict[str, Any]]:
        """All states of the run, the first one first."""
        states = self.get(f"/flow_run_states/?flow_run_id={run}")
        return sorted(states, key=lambda state: state["timestamp"])

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        answer = self._http.request(method, path, **options).raise_for_status()
        return answer.json() if answer.content else None
