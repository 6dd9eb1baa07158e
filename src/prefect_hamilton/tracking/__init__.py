"""Hamilton UI tracking for dataflows that run inside Prefect tasks.

    with tracking.track("prepare_data_task") as tracked:
        driver = builder.with_adapters(*tracked.adapters).build()
        result = driver.execute([...], inputs={...})
    tracked.run_url  # permalink in the Hamilton UI, None when tracking is off

Tracking is on when `HAMILTON_UI_USERNAME` and `HAMILTON_UI_PROJECT_ID` are set. Optional:
`HAMILTON_API_URL` (where runs are sent), `HAMILTON_UI_URL` (what links point at), both
http://localhost:8241 by default, and `HAMILTON_API_KEY`, the server's shared key.

Tracking is best-effort: the result of the dataflow is the same as without tracking. It takes time:
the first tracked task of a process imports the SDK (seconds), all waiting for the Hamilton UI in
one flow run is bounded by `PATIENCE` (6 s, of which the first 0.25 s of a call do not count), all
summaries of inputs and results by `SUMMARY_TIME` (3 s, and what the last one takes above it). After
a failure the rest of the flow run (in this process) is not tracked, and one warning gives the
reason.

The UI stores a dataflow's source code, its config, its inputs (up to 10,000 characters each) and a
summary of every node's result (for a data frame of up to 200,000 cells: statistics of each column;
for a scalar or a text: the value). Of larger values, and of objects of unknown types, it stores
only a description. `HAMILTON_CAPTURE_DATA_STATISTICS=false` keeps every value here: of inputs only
the type's name is sent, of results only the schema. `HAMILTON_MAX_LIST_LENGTH_CAPTURE` (50) and
`HAMILTON_MAX_DICT_LENGTH_CAPTURE` (100) bound how many items of a list or a dict a summary holds.

Never pass a secret as input or config, nor return one from a node. Text that looks like a secret is
masked: before the @ of a URL or a word, the query of a URL, and after `password=` and similar
names. If an input contains one, the messages of the run's exceptions are not sent either, because
they may contain a part of it.
"""

import importlib
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from prefect_hamilton._hamilton_api import HamiltonError
from prefect_hamilton._run_logger import run_logger
from prefect_hamilton.artifacts import slug
from prefect_hamilton.masking import mask
from prefect_hamilton.metrics import TRACKING_EVENT
from prefect_hamilton.tracking.settings import FlowRunTracking, Settings

_quiet_lock = threading.Lock()
_quiet_blocks = 0
_level_before = logging.NOTSET

_flow_runs: dict[str, FlowRunTracking] = {}
_flow_runs_lock = threading.Lock()


def _of_flow_run(flow_run_id: str | None) -> FlowRunTracking:
    if flow_run_id is None:
        return FlowRunTracking()
    with _flow_runs_lock:
        return _flow_runs.setdefault(flow_run_id, FlowRunTracking())


@dataclass
class Tracked:
    """One tracked dataflow execution.

    `adapters` go to `driver.Builder.with_adapters`; empty when tracking is off or unavailable.
    `run_url` is the permalink of the latest execution, None before the first or without tracking.
    """

    adapters: list[Any] = field(default_factory=list)
    run_url: str | None = None


@contextmanager
def track(
    task_name: str,
    *,
    dag_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    enabled: bool = True,
    link: bool = True,
) -> Iterator[Tracked]:
    """Track the dataflows that are built and executed in this block.

    They appear in the Hamilton UI as `prefect_<task_name>`, tagged with the Prefect task, flow and
    flow run, and with `dataflow=<dag_name>` when that is given. The link is published as an
    artifact of the run unless `link` is false. Exceptions of the block pass through; tracking
    raises none. If `enabled` is false, nothing is tracked.

    Hamilton's logger is silent meanwhile, also when tracking is off: when a node raises, it would
    log its input values, which could be a URL with a password. The exception reaches the task.
    """
    logger = run_logger()
    run_id = flow_run.get_id()
    shared = _of_flow_run(run_id)
    tracked = Tracked()
    context = copy_context()  # a node may run in a thread that does not know the flow run

    def give_up(error: Exception) -> None:
        if shared.give_up():
            cause = str(error) if isinstance(error, HamiltonError) else repr(error)
            logger.warning(
                "Hamilton UI tracking is off for the rest of this flow run: %s. "
                "The flow continues without it.",
                cause,
            )
            if run_id is not None:
                context.run(_report_failure, run_id, cause)

    sender = None
    try:
        settings = Settings.from_env() if enabled and not shared.given_up else None
        if settings is not None:
            # The SDK takes seconds to import: only flows that track pay for it.
            tracking_sdk = _import_sdk()

            project_url = f"{settings.ui_url}/dashboard/project/{settings.project_id}"

            def started(hamilton_run_id: int) -> None:
                tracked.run_url = f"{project_url}/runs/{hamilton_run_id}"
                logger.info("Hamilton UI tracking is on: %s", tracked.run_url)
                if link:
                    _publish_link(task_name, tracked.run_url, logger)

            sender = tracking_sdk.Sender(settings, shared)
            tracker = tracking_sdk.BestEffortTracker(
                settings,
                sender,
                shared,
                dag_name=f"prefect_{task_name}",
                tags=_tags(task_name, dag_name, run_id) | dict(tags or {}),
                on_started=started,
                on_failure=give_up,
            )
            tracked.adapters.append(tracker)
    except Exception as error:
        give_up(error)
    try:
        with quiet_hamilton():
            yield tracked
    finally:
        if sender is not None:
            sender.close()


def _report_failure(run_id: str, cause: str) -> None:
    """Emit an event, which the exporter of metrics counts."""
    emit_event(
        event=TRACKING_EVENT,
        resource={"prefect.resource.id": f"prefect.flow-run.{run_id}"},
        payload={"message": mask(cause)},
    )


@contextmanager
def quiet_hamilton() -> Iterator[None]:
    """Silence Hamilton's logger for as long as there is such a block, in whatever thread."""
    global _quiet_blocks, _level_before
    hamilton = logging.getLogger("hamilton")
    with _quiet_lock:
        if _quiet_blocks == 0:
            _level_before = hamilton.level
            hamilton.setLevel(logging.CRITICAL)
        _quiet_blocks += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_blocks -= 1
            if _quiet_blocks == 0:
                hamilton.setLevel(_level_before)


_MODEL_SUMMARIES = "hamilton_sdk.tracking.scikit_learn_stats"
"""What the SDK sums models up with: it imports scikit-learn, a second and 90 MB."""


def _import_sdk() -> ModuleType:
    """Import the SDK, and its summaries of models once the flow has imported scikit-learn."""
    has_models = "sklearn" in sys.modules
    missing: Any = None
    if not has_models:
        sys.modules.setdefault(_MODEL_SUMMARIES, missing)
    try:
        from prefect_hamilton.tracking import sdk
    finally:
        if sys.modules.get(_MODEL_SUMMARIES) is None:
            sys.modules.pop(_MODEL_SUMMARIES, None)
    if has_models:
        importlib.import_module(_MODEL_SUMMARIES)
    return sdk


def _tags(task_name: str, dag_name: str | None, run_id: str | None) -> dict[str, str]:
    tags = {
        "orchestrator": "prefect",
        "prefect_task": task_name,
        "prefect_flow": flow_run.get_flow_name(),
        "prefect_flow_run_id": run_id,
        "prefect_flow_run_url": url_for("flow-run", obj_id=run_id) if run_id else None,
        "dataflow": dag_name,
    }
    return {name: value for name, value in tags.items() if value}


def _publish_link(
    task_name: str, url: str, logger: "logging.Logger | logging.LoggerAdapter[Any]"
) -> None:
    if flow_run.get_id() is None:
        return
    # _sync: in an async task the function would return a coroutine instead.
    create: Any = create_markdown_artifact
    try:
        create(
            key=f"hamilton-run-{slug(task_name)}",
            markdown=f"[prefect_{task_name} in the Hamilton UI]({url})",
            description=f"Hamilton UI: {task_name} execution",
            _sync=True,
        )
    except Exception as error:
        logger.warning("Could not publish the link to %s as an artifact: %s", url, error)
