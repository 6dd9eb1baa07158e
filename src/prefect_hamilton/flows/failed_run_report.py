"""Flow `Failed Run Report`: started by an automation for each flow run that failed or crashed."""

import logging
import re
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed
from prefect.utilities.urls import url_for

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, Log, State

ARTIFACT_KEY = "failed-run-report"
LOG_LINES = 30


@flow(name="Failed Run Report")
def failed_run_report(flow_run_id: UUID) -> "State[Any]":
    """
    Report on a flow run that failed or crashed: its state, its last log lines and a link.

    Args:
        flow_run_id: The flow run to report on.

    """
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(flow_run_id)
        except ObjectNotFound:
            return Failed(message=f"There is no flow run {flow_run_id}; it may have been deleted")
        flow_name = client.read_flow(run.flow_id).name
        logs = client.read_logs(
            log_filter=LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])),
            limit=LOG_LINES,
            sort=LogSort.TIMESTAMP_DESC,
        )
    state = run.state.name if run.state else "unknown"
    create_markdown_artifact(
        markdown=_markdown(run, flow_name, list(reversed(logs))),
        key=ARTIFACT_KEY,
        description=f"{flow_name} / {run.name}: {state}",
    )
    message = f"Reported that {flow_name} / {run.name} ended as {state}"
    get_run_logger().info(message)
    return Completed(message=message)


def _markdown(run: "FlowRun", flow_name: str, logs: "list[Log]") -> str:
    """Return the report; what the run itself wrote stands in fences that it cannot close."""
    state = run.state.name if run.state else "unknown"
    message = (run.state.message if run.state else None) or "no message"
    url = url_for("flow-run", obj_id=run.id)
    link = f"[{run.name}]({url})" if url else run.name
    lines = [
        f"{log.timestamp:%H:%M:%S} {logging.getLevelName(log.level):8} {log.message}"
        for log in logs
    ]
    when = f", {run.end_time:%Y-%m-%d %H:%M:%S} UTC" if run.end_time else ""
    return "\n".join(
        [
            f"# {state}: {flow_name} / {run.name}",
            "",
            f"Flow run {link}, attempt {run.run_count}{when}.",
            "",
            _fenced(message),
            "",
            f"## Last {len(lines)} log lines",
            "",
            _fenced("\n".join(lines) or "no logs"),
        ]
    )


def _fenced(text: str) -> str:
    fence = "`" * max(4, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"
