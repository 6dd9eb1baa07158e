"""Log lines as JSON, one object per record, in one shape for every part of an installation.

Prefect uses the formatter where PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER is `json` and
PREFECT_LOGGING_FORMATTERS_JSON_CLASS names it; the Hamilton UI always does. Keys: `timestamp` (RFC
3339, UTC), `level`, `logger`, `message`; for records of a flow run `flow_run_id`, `flow_run_name`,
`flow_name`, `deployment_id`, `work_pool`, and of a task run `task_run_id`, `task_run_name`,
`task_name`; within a span `trace_id` and `span_id`; for an exception `exc_info` with `type`,
`message` and `traceback`. A key whose value is not known is left out.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

_OF_RECORD = (
    "flow_run_id",
    "flow_run_name",
    "flow_name",
    "task_run_id",
    "task_run_name",
    "task_name",
)
"""What Prefect's loggers of flow runs and task runs add to each record."""


class JsonFormatter(logging.Formatter):
    """The formatter; takes and ignores what `logging.config` gives to every formatter."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "timestamp": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        run = dict(_of_process()) | dict(_of_context())
        run |= {key: value for key in _OF_RECORD if (value := getattr(record, key, None))}
        line.update(run, **_of_span())
        if record.exc_info and record.exc_info[1]:
            line["exc_info"] = _exception(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


def _of_process() -> Iterator[tuple[str, Any]]:
    """Yield the flow run of this pod or process, also for records of other loggers."""
    if flow_run_id := os.environ.get("PREFECT__FLOW_RUN_ID"):
        yield "flow_run_id", flow_run_id


def _of_context() -> Iterator[tuple[str, Any]]:
    """Yield what Prefect knows of the run that logs; nothing outside of one or without Prefect."""
    context = getattr(sys.modules.get("prefect.context"), "FlowRunContext", None)
    flow_run = getattr(context and context.get(), "flow_run", None)
    for key, name in (
        ("flow_run_id", "id"),
        ("flow_run_name", "name"),
        ("deployment_id", "deployment_id"),
        ("work_pool", "work_pool_name"),
    ):
        if value := getattr(flow_run, name, None):
            yield key, value


def _of_span() -> dict[str, str]:
    """Return the ids of the span that is recorded, in the form of W3C Trace Context."""
    trace = sys.modules.get("opentelemetry.trace")
    span = trace.get_current_span().get_span_context() if trace else None
    if span is None or not span.is_valid:
        return {}
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}


def _exception(error: BaseException) -> dict[str, str]:
    text = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "message": str(error), "traceback": text}
