"""Log lines as JSON, one object per record, in one shape for every part of an installation.

Prefect uses the formatter where PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER is `json` and
PREFECT_LOGGING_FORMATTERS_JSON_CLASS names it; the Hamilton UI always does. Keys: `timestamp` (RFC
3339, UTC), `level`, `logger`, `message`; for records of a flow run `flow_run_id`, `flow_run_name`,
`flow_name`, `deployment_id`, `work_pool`, and of a task run `task_run_id`, `task_run_name`,
`task_name`; within a span `trace_id` and `span_id`; for a record of the worker about a Kubernetes
object `object` with `kind`, `namespace` and `name`; for an exception `exc_info` with `type`,
`message` and `traceback`. A key whose value is not known is left out.

Programs that print use `lines`, with the same effect. `python -m prefect_hamilton.logs COMMAND…`
runs a program that is not Python, and writes a record for each line of its output.
"""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from typing import Any, TextIO

from prefect_hamilton.masking import mask

VARIABLE = "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER"
"""Says `json` where log lines are JSON."""

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
        run = dict(_of_process()) | dict(_of_context(record))
        run |= {key: value for key in _OF_RECORD if (value := getattr(record, key, None))}
        line.update(run, **_of_span(record))
        if reference := getattr(record, "k8s_ref", None):  # a record of kopf
            line["object"] = {key: reference.get(key) for key in ("kind", "namespace", "name")}
        if record.exc_info and record.exc_info[1]:
            line["exc_info"] = _exception(record.exc_info[1], record.exc_text)
        return json.dumps(line, ensure_ascii=False, default=str)


def _of_process() -> Iterator[tuple[str, Any]]:
    """Yield the flow run of this pod or process, also for records of other loggers."""
    if flow_run_id := os.environ.get("PREFECT__FLOW_RUN_ID"):
        yield "flow_run_id", flow_run_id


def _of_context(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    """Yield what Prefect knows of the run that logs; nothing outside of one or without Prefect."""
    prefect = sys.modules.get("prefect.context")
    of_flow, of_task = (
        context and context.get()
        for context in (getattr(prefect, f"{kind}RunContext", None) for kind in ("Flow", "Task"))
    )
    flow_run_id = getattr(record, "flow_run_id", None) or _find(of_flow, "flow_run.id")
    if str(_find(of_task, "task_run.flow_run_id")) != str(flow_run_id):
        of_task = None  # it calls a subflow, which logs
    for key, of, path in (
        ("flow_run_id", of_flow, "flow_run.id"),
        ("flow_run_name", of_flow, "flow_run.name"),
        ("deployment_id", of_flow, "flow_run.deployment_id"),
        ("work_pool", of_flow, "flow_run.work_pool_name"),
        ("flow_name", of_flow, "flow.name"),
        ("task_run_id", of_task, "task_run.id"),
        ("task_run_name", of_task, "task_run.name"),
        ("task_name", of_task, "task.name"),
    ):
        if value := _find(of, path):
            yield key, value


def _find(found: Any, path: str) -> Any:
    """Return the attribute at the path; None if there is none, so that a line is always written."""
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _of_span(record: logging.LogRecord) -> dict[str, str]:
    """Return the ids of the span that is recorded, in the form of W3C Trace Context.

    It is the current one; the last lines of a run, which has ended then, belong to its span.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    span = trace.get_current_span()
    context = span.get_span_context()
    # The module may be in the middle of its import.
    if of_run := getattr(sys.modules.get("prefect_hamilton._run_spans"), "context_of", None):
        run_id = getattr(record, "task_run_id", None) or getattr(record, "flow_run_id", None)
        # A span without it is that of a dataflow or node of the run.
        current = (getattr(span, "attributes", None) or {}).get("prefect.run.id", run_id)
        if not context.is_valid or current != run_id:
            context = of_run(run_id) or context
    if not (context.is_valid and context.trace_flags.sampled):
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def _exception(error: BaseException, masked: str | None) -> dict[str, str]:
    """Return the parts of an exception; `masked` is its traceback if a filter has masked it."""
    message = mask(str(error)) if masked else str(error)
    text = masked or "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "message": message, "traceback": text}


@contextmanager
def lines(name: str) -> Iterator[None]:
    """Write what the block prints as records of the logger `name`, where log lines are JSON.

    Each text that is printed at once is one record, of level INFO on standard output and WARNING on
    standard error. An exception is one of level ERROR with its traceback, and ends the program with
    status 1; so is the message of `sys.exit`, or another status than 0.
    """
    if os.environ.get(VARIABLE) != "json":
        yield
        return
    out, err = _Lines(sys.stdout, name, logging.INFO), _Lines(sys.stderr, name, logging.WARNING)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        except SystemExit as end:
            out.end()
            if isinstance(end.code, str):
                err.record(end.code, level=logging.ERROR)
                raise SystemExit(1) from None
            if end.code:
                err.record(f"It ends with status {end.code}.", level=logging.ERROR)
            raise
        except Exception as error:
            out.end()
            err.record(str(error), level=logging.ERROR, error=error)
            raise SystemExit(1) from None
        finally:
            out.end()
            err.end()


class _Lines(io.TextIOBase):
    """A stream whose texts become records; records of a logger pass unchanged."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, stream: TextIO, name: str, level: int) -> None:
        self._stream, self._name, self._level = stream, name, level
        self._begun = ""
        self._lock = threading.RLock()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # as other text streams
            raise TypeError(f"text is expected, not {type(text).__name__}")
        with self._lock:
            self._begun += text
            if self._begun.endswith("\n"):
                self.end()
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def end(self) -> None:
        """Write what has been printed without the end of a line."""
        with self._lock:
            text, self._begun = self._begun.rstrip("\n"), ""
            if text and all(line.startswith('{"timestamp": ') for line in text.splitlines()):
                self._stream.write(f"{text}\n")
            elif text.strip():
                self.record(text, level=self._level)

    def record(self, text: str, *, level: int, error: BaseException | None = None) -> None:
        """Write one record."""
        cause = (type(error), error, error.__traceback__) if error else None
        record = logging.LogRecord(self._name, level, "", 0, text, None, cause)
        with self._lock:
            self._stream.write(f"{JsonFormatter().format(record)}\n")
            self._stream.flush()


def main(command: list[str]) -> int:
    """Run a command until it ends, also by SIGTERM; its exit status."""
    started: list[subprocess.Popen[str]] = []
    stop = threading.Event()

    def terminate(*_: object) -> None:
        stop.set()
        for process in started:
            process.terminate()

    # Set first: the signal may arrive while the command starts.
    signal.signal(signal.SIGTERM, terminate)
    with (
        lines(command[0]),
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        started.append(process)
        if stop.is_set():
            process.terminate()
        for line in process.stdout or ():
            sys.stdout.write(line)
    status = process.returncode
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
