"""A flow pod whose clock differs from the server's by five minutes."""

import signal
from datetime import UTC, datetime, timedelta

import pytest
from prefect.client.schemas.objects import StateType

from tests.faketime import LIBRARY, clock
from tests.images.pods import Pods

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed"),
    pytest.mark.parametrize("offset", ["-5m", "+5m"]),
]


def test_the_flow_runs_once(pods: Pods, offset: str) -> None:
    run = pods.taken_up()

    code, output = pods.execute(run, **clock(offset))

    assert code == 0, output
    state = pods.state(run)
    assert state.type == StateType.COMPLETED
    assert pods.run_count(run) == 1
    assert abs(datetime.now(UTC) - state.timestamp) < timedelta(minutes=1)


def test_a_rescheduled_run_is_due_by_the_clock_of_the_server(pods: Pods, offset: str) -> None:
    run = pods.taken_up(end="wait")
    with pods.executing(run, **clock(offset)) as pod:
        pods.wait_for_log(run, "about to wait")
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(timeout=60) == 0

    state = pods.state(run)
    assert state.name == "AwaitingRetry", (state, pods.log(run))
    due = state.state_details.scheduled_time
    assert due is not None
    assert abs(due - datetime.now(UTC)) < timedelta(minutes=1)
