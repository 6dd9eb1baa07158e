"""One trace for each flow run in Jaeger: flow run, task runs, dataflows, nodes."""

from typing import Any

import pytest

from tests.monitoring.conftest import Monitored, Runs, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def what(span: Any) -> str:
    """What a span is of: flow, task, dataflow or node."""
    tags = {tag["key"]: tag["value"] for tag in span["tags"]}
    if "hamilton.dataflow.name" in tags:
        return "dataflow"
    return "node" if "hamilton.node.type" in tags else str(tags["prefect.run.type"])


def paths(trace: Any) -> set[tuple[str, ...]]:
    """What is above each span, from the root to the span."""
    spans = {span["spanID"]: span for span in trace["spans"]}

    def path(span: Any) -> tuple[str, ...]:
        above = [each["spanID"] for each in span["references"] if each["refType"] == "CHILD_OF"]
        return (*(path(spans[above[0]]) if above else ()), what(span))

    return {path(span) for span in spans.values()}


def test_a_run_is_one_trace_from_flow_to_node(cluster: Monitored, runs: Runs) -> None:
    (trace,) = until(lambda: cluster.traces(runs.etl))
    assert {
        ("flow",),
        ("flow", "task"),
        ("flow", "task", "dataflow"),
        ("flow", "task", "dataflow", "node"),
    } <= paths(trace)
    roots = [span for span in trace["spans"] if not span["references"]]
    assert len(roots) == 1


def test_each_run_has_its_own_trace(cluster: Monitored, runs: Runs) -> None:
    (good,) = until(lambda: cluster.traces(runs.good))
    (failed,) = until(lambda: cluster.traces(runs.failed))
    assert good["traceID"] != failed["traceID"]
    assert {("flow",), ("flow", "task")} == paths(failed)
    (root,) = [span for span in failed["spans"] if not span["references"]]
    assert {"key": "error", "type": "bool", "value": True} in root["tags"]
