"""Logs of all pods in VictoriaLogs, by way of a collector on the node."""

import re

import pytest

from tests.monitoring.conftest import Monitored, Runs, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

TEXT = (
    r"prefect-hamilton-(postgres|valkey)-0/\w+: .*",
    r"prefect-hamilton-ui-[^/]+/migrate: .*",
    r"prefect-hamilton-worker-[^/]+/worker: (Discovered type|Received SIG|Worker ).*",
)
"""Lines that are not JSON, with pod and container: docs/logs.md names them."""


def test_every_pod_is_there(cluster: Monitored, runs: Runs) -> None:
    pods = {pod["metadata"]["name"] for pod in cluster.get("pods")["items"]}

    def all_are_there() -> bool:
        found = cluster.lines("| uniq by (k8s.pod.name)")
        missing = pods - {each["k8s.pod.name"] for each in found}
        assert missing == set()
        return True

    until(all_are_there)


def test_every_line_is_json_but_for_those_that_are_named(cluster: Monitored, runs: Runs) -> None:
    assert len(until(lambda: cluster.lines("logger:*"))) > 100
    texts = [
        f"{line['k8s.pod.name']}/{line['k8s.container.name']}: {line.get('_msg', '')}"
        for line in cluster.lines('logger:""')
    ]
    others = [text for text in texts if not any(re.fullmatch(each, text, re.S) for each in TEXT)]
    assert others == []


def test_lines_of_a_failed_run_are_found_by_its_id(cluster: Monitored, runs: Runs) -> None:
    def found() -> set[str]:
        return {line["_msg"] for line in cluster.lines(f'flow_run_id:="{runs.failed}"')}

    until(lambda: any("Retries exhausted" in message for message in found()))
    errors = cluster.lines(f'flow_run_id:="{runs.failed}" "exc_info.type":="DemonstrationError"')
    assert "flows/retries_demo.py" in errors[0]["exc_info.traceback"]
    assert errors[0]["task_name"] in {"flaky_transform", "optional_failure"}


def test_lines_of_a_killed_run_are_found_by_its_id(cluster: Monitored, runs: Runs) -> None:
    until(lambda: cluster.lines(f'flow_run_id:="{runs.killed}" "Eating"'))


def test_lines_of_a_run_name_its_trace(cluster: Monitored, runs: Runs) -> None:
    (trace,) = until(lambda: cluster.traces(runs.etl))
    lines = until(lambda: cluster.lines(f'flow_run_id:="{runs.etl}" trace_id:*'))
    assert {line["trace_id"] for line in lines} == {trace["traceID"]}
