"""A standby pod against a real Prefect server: it waits, and becomes the pod of a flow run."""

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
from prefect.client.schemas.objects import FlowRun, StateType

from prefect_hamilton.flow_pod import standby
from tests.images.pods import Pods

pytestmark = pytest.mark.services


def assignment(run: FlowRun, **environment: str) -> str:
    return json.dumps({"environment": {"PREFECT__FLOW_RUN_ID": str(run.id), **environment}})


def tell(pod: subprocess.Popen[str], text: str) -> None:
    """Write a line to the pod as a worker does, which leaves the input open."""
    assert pod.stdin
    pod.stdin.write(f"{text}\n")
    pod.stdin.flush()


def annotate(pods: Pods, text: str) -> None:
    """Replace the content of the file at once, as Kubernetes does."""
    new = pods.notes / "new"
    new.write_text(text)
    new.rename(pods.notes / "flow-run")


def test_a_line_starts_the_flow_run(pods: Pods) -> None:
    run = pods.taken_up()
    with pods.standing_by() as pod:
        tell(pod, "not an assignment")
        tell(pod, assignment(run))
        assert pod.wait(timeout=60) == 0
        assert pod.stdout
        output = pod.stdout.read()

    assert pods.state(run).type == StateType.COMPLETED
    # What the worker waits for.
    assert f"Standby pod begins flow run '{run.id}'" in output


def test_the_annotation_starts_the_flow_run_of_a_worker_that_died(pods: Pods) -> None:
    run = pods.taken_up()
    annotate(pods, "")
    with pods.standing_by() as pod:
        annotate(pods, assignment(run))
        assert pod.wait(timeout=60) == 0

    assert pods.state(run).type == StateType.COMPLETED


def test_a_word_that_comes_twice_starts_one_flow_run(pods: Pods) -> None:
    run = pods.taken_up()
    with pods.standing_by() as pod:
        annotate(pods, assignment(run))
        tell(pod, assignment(run))
        assert pod.wait(timeout=60) == 0

    assert pods.run_count(run) == 1


def test_sigterm_ends_an_idle_pod_well(pods: Pods) -> None:
    with pods.standing_by() as pod:
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(timeout=60) == 0


def test_an_idle_pod_ends_after_its_time(pods: Pods) -> None:
    with pods.standing_by(PREFECT_HAMILTON_STANDBY_SECONDS="0.1") as pod:
        assert pod.wait(timeout=60) == 0


def test_sigterm_with_the_word_reschedules_the_run(pods: Pods) -> None:
    """The assignment and the signal come while the pod is stopped: it knows both, in no order."""
    run = pods.taken_up(end="wait")
    with pods.standing_by() as pod:
        pod.send_signal(signal.SIGSTOP)
        tell(pod, assignment(run))
        pod.send_signal(signal.SIGTERM)
        pod.send_signal(signal.SIGCONT)
        assert pod.wait(timeout=60) == 0

    assert pods.state(run).name == "AwaitingRetry"


def test_the_run_finds_all_of_prefect_imported(pods: Pods) -> None:
    run = pods.taken_up()
    with pods.standing_by(PYTHONPROFILEIMPORTTIME="1") as pod:
        tell(pod, assignment(run))
        output, _ = pod.communicate(timeout=60)

    assert pods.state(run).type == StateType.COMPLETED
    assert not re.findall(r"^import time: .*\| +((?:prefect|pydantic)\b.*)$", output, re.MULTILINE)


def test_preloaded_modules_are_imported_and_an_unknown_one_is_reported(
    pods: Pods, tmp_path: Path
) -> None:
    (tmp_path / "early.py").write_text("print('imported early')")
    path = f"{Path(__file__).parents[2] / 'src'}:{tmp_path}"
    environment = {"PREFECT_HAMILTON_STANDBY_PRELOAD": "absent, early", "PYTHONPATH": path}
    run = pods.taken_up()
    with pods.standing_by(**environment) as pod:
        tell(pod, assignment(run))
        assert pod.wait(timeout=60) == 0
    # The lines before it is idle.
    idle = {"PREFECT_HAMILTON_STANDBY_SECONDS": "0.1", "PREFECT_HAMILTON_STANDBY_FILE": "absent"}
    with pods._started(**environment, **idle) as pod:
        output, _ = pod.communicate(timeout=60)

    assert pods.state(run).type == StateType.COMPLETED
    assert "imported early" in output
    assert "Cannot preload absent: ModuleNotFoundError" in output


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("pod=$(POD)&x=$(ABSENT)", "pod=a-pod&x=$(ABSENT)"),
        ("$$(POD) costs $5 $()", "$(POD) costs $5 $()"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(value: str, found: str) -> None:
    assert standby.expanded(value, {"POD": "a-pod"}) == found
