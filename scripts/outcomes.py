"""The results that the flow runs of the demo must have, in addition to their states.

These are rows and the load log in the warehouse, artifacts in Prefect, executions in the Hamilton
UI, and the verdict on the model. Each check yields one sentence per missing or wrong result, and
nothing if everything is as expected.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import httpx

from prefect_hamilton import warehouse

ROWS = 4 * 1461
"""Rows of the sample: four metrics on each day of the years 2012 to 2015."""
MONTHS = 4 * 48
"""Metrics and months of the sample."""
VERDICT = "The model beats the baseline."
"""The verdict on the model that is trained on the sample."""

Query = Callable[[str], list[dict[str, str]]]
"""Runs a query in the warehouse; the rows as text by column."""


@dataclass(frozen=True)
class Evidence:
    """The places where the outcome of a run is looked up."""

    prefect: httpx.Client
    query: Query
    hamilton_headers: dict[str, str]

    def artifacts(self, flow_run_id: str) -> dict[str, Any]:
        """Return the data of a flow run's artifacts by key, the latest of each key."""
        body = {"flow_runs": {"id": {"any_": [flow_run_id]}}, "sort": "CREATED_DESC"}
        found = self.prefect.post("/artifacts/filter", json=body).raise_for_status().json()
        return {artifact["key"]: artifact["data"] for artifact in reversed(found)}

    def execution(self, link: str) -> str:
        """Return the status of the execution behind a link to the Hamilton UI."""
        address = urlsplit(link)
        url = f"{address.scheme}://{address.netloc}/api/v1/dag_runs/{address.path.split('/')[-1]}"
        answer = httpx.get(url, headers=self.hamilton_headers, timeout=30, trust_env=False)
        if not answer.is_success:
            return f"not found ({answer.status_code})"
        return str(answer.json()[0]["run_status"])


@dataclass(frozen=True)
class Pipeline:
    """A run of the pipeline on the sample, into `table` (catalog.schema.table)."""

    table: str

    def problems(self, evidence: Evidence, run_id: str) -> Iterator[str]:
        """Yield what the run should have left behind and did not."""
        tables = (self.table, f"{self.table}_monthly", f"{self.table}_loads")
        if absent := sorted({*tables} - {*row_counts(evidence.query)}):
            yield f"the warehouse has no {', '.join(absent)}"
            return
        loads = evidence.query(
            f"SELECT status, rows_written, months_written FROM {self.table}_loads "  # noqa: S608
            f"WHERE flow_run_id = '{run_id}'"
        )
        expected = {
            "status": "complete",
            "rows_written": str(ROWS),
            "months_written": str(MONTHS),
        }
        if loads != [expected]:
            yield f"the rows of the run in {self.table}_loads are {loads}, expected [{expected}]"
        for table, count in ((self.table, ROWS), (f"{self.table}_monthly", MONTHS)):
            # Runs that began later may have written the same rows again.
            found = evidence.query(
                f"SELECT count(*) AS n FROM {table} WHERE flow_run_id IN (SELECT flow_run_id "  # noqa: S608
                f"FROM {self.table}_loads WHERE started_at >= (SELECT started_at "
                f"FROM {self.table}_loads WHERE flow_run_id = '{run_id}'))"
            )[0]["n"]
            if found != str(count):
                yield f"{table} has {int(found):,} rows of the run, expected {count:,}"
        artifacts = evidence.artifacts(run_id)
        if artifacts.get("pipeline-load-progress") != 100:
            yield f"pipeline-load-progress is {artifacts.get('pipeline-load-progress')}, not 100"
        yield from _missing(artifacts, "pipeline-preview", "pipeline-summary", "pipeline-link")
        yield from _dataflows(evidence, artifacts, "validate-metrics", "transform-metrics")


@dataclass(frozen=True)
class Model:
    """A run that trains the model on the sample."""

    def problems(self, evidence: Evidence, run_id: str) -> Iterator[str]:
        """Yield what the run should have left behind and did not."""
        artifacts = evidence.artifacts(run_id)
        yield from _missing(artifacts, "absenteeism-model-data", "absenteeism-results")
        if artifacts.get("absenteeism-progress") != 100:
            yield f"absenteeism-progress is {artifacts.get('absenteeism-progress')}, not 100"
        verdict = str(artifacts.get("absenteeism-results", "")).partition("\n")[0].lstrip("# ")
        if verdict != VERDICT:
            yield f"its verdict is “{verdict}”, expected “{VERDICT}”"
        yield from _dataflows(
            evidence, artifacts, "prepare-data-task", "train-and-evaluate-model-task"
        )


@dataclass(frozen=True)
class Report:
    """A run that publishes one report, the artifact `key`, with each of `words` in it."""

    key: str
    words: tuple[str, ...] = ()

    def problems(self, evidence: Evidence, run_id: str) -> Iterator[str]:
        """Yield what the run should have left behind and did not."""
        artifacts = evidence.artifacts(run_id)
        yield from _missing(artifacts, self.key)
        report = str(artifacts.get(self.key, ""))
        yield from (
            f"{self.key} does not contain {word!r}" for word in self.words if word not in report
        )


Outcome = Pipeline | Model | Report


def _missing(artifacts: dict[str, Any], *keys: str) -> Iterator[str]:
    yield from (f"the artifact {key} is missing" for key in keys if not artifacts.get(key))


def _dataflows(evidence: Evidence, artifacts: dict[str, Any], *tasks: str) -> Iterator[str]:
    """Each task has the picture of its dataflow, and a link to an execution that succeeded."""
    for task in tasks:
        yield from _missing(artifacts, f"hamilton-dag-{task}", f"hamilton-run-{task}")
        link = re.search(r"https?://[^\s)]+/runs/\d+", str(artifacts.get(f"hamilton-run-{task}")))
        if link and (status := evidence.execution(link.group())) != "SUCCESS":
            yield f"its execution in the Hamilton UI is {status}: {link.group()}"


@contextmanager
def opened(url: str) -> Iterator[Query]:
    """Open a warehouse for queries. Raises WarehouseError when it cannot be opened."""
    # A run that starts by schedule may hold a DuckDB file: connect waits for it.
    with warehouse.connect(url) as connection:

        def query(text: str) -> list[dict[str, str]]:
            rows = connection.read(text).astype(str).to_dict("records")
            return cast(list[dict[str, str]], rows)

        yield query


def row_counts(query: Query) -> dict[str, int]:
    """Return how many rows each table of the warehouse holds, by catalog.schema.table."""
    tables = query(
        "SELECT table_catalog || '.' || table_schema || '.' || table_name AS name "
        "FROM information_schema.tables "
        "WHERE table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 1"
    )
    # The names come from the catalog itself.
    return {
        table["name"]: int(query(f"SELECT count(*) AS n FROM {table['name']}")[0]["n"])  # noqa: S608
        for table in tables
    }
