"""The walkthrough's two runs: one succeeds after a retry, one exhausts its retries."""

import re
from collections import Counter

import pytest

from flows import retries_demo

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("prefect_api")]


def _failed_attempts(log: str) -> Counter[str]:
    """Count the failed attempts of each task that Prefect logged."""
    return Counter(re.findall(r"Task run failed with exception: DemonstrationError\('(\w+)", log))


def test_a_run_succeeds_after_a_retry(caplog: pytest.LogCaptureFixture) -> None:
    state = retries_demo.ui_walkthrough_retries(return_state=True)

    assert state.is_completed()
    assert state.result() == {
        "flaky_transform": "succeeded at attempt 2",
        "optional_failure": "succeeded at attempt 1",
    }
    assert _failed_attempts(caplog.text) == {"flaky_transform": 1}
    assert "Retry 1/2 will start 1 second(s) from now" in caplog.text


def test_a_run_exhausts_its_retries(caplog: pytest.LogCaptureFixture) -> None:
    state = retries_demo.ui_walkthrough_retries(should_fail=True, return_state=True)

    assert state.is_failed()
    assert state.message == "Retries exhausted: flaky_transform, optional_failure"
    assert _failed_attempts(caplog.text) == {"flaky_transform": 3, "optional_failure": 2}
    assert "Retry 1/1 will start 1 second(s) from now" in caplog.text


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert retries_demo.main([]) == 0
    assert "flaky_transform succeeded at attempt 2" in capsys.readouterr().out
