"""The verdict on a run, without a cluster: each kind of failure counts as one."""

from typing import Any

import pytest

from tests.faults.verdict import Report, Run, judge, longest_gap

ONCE = [("SCHEDULED", "Scheduled"), ("PENDING", "Pending"), ("RUNNING", "Running")]
COMPLETED = ("COMPLETED", "Completed")
CRASHED = ("CRASHED", "Crashed")


def rows(
    execution: str, *, attempt: int = 1, outcome: str | None = "ok", at: float = 1.0
) -> list[dict[str, Any]]:
    """An execution in the pod `pod-<execution>`; without an outcome it has no end."""
    about = {"execution": execution, "attempt": attempt, "pod": f"pod-{execution}"}
    start = {**about, "event": "start", "arrived": at}
    end = {**about, "event": "end", "outcome": outcome, "arrived": at + 1}
    return [start] if outcome is None else [start, end]


@pytest.mark.parametrize(
    ("kind", "states", "written", "word", "lost", "doubled"),
    [
        ("succeeds", [*ONCE, COMPLETED], rows("a"), "right", 0, 0),
        ("fails", [*ONCE, ("FAILED", "Failed")], rows("a", outcome="failed"), "right", 0, 0),
        ("fails", [*ONCE, COMPLETED], rows("a", outcome="failed"), "otherwise wrong", 0, 0),
        (
            "retries",
            [*ONCE, ("SCHEDULED", "AwaitingRetry"), ONCE[2], COMPLETED],
            [*rows("a", outcome="failed"), *rows("a2", attempt=2, at=3.0)],
            "right",
            0,
            0,
        ),
        ("eats_memory", [*ONCE, CRASHED], rows("a", outcome=None), "right", 0, 0),
        ("succeeds", [], [], "lost", 0, 0),
        ("succeeds", [*ONCE, COMPLETED], [], "lost", 1, 0),
        ("succeeds", [*ONCE, COMPLETED], [*rows("a"), *rows("b")], "doubled", 0, 2),
        ("succeeds", [*ONCE, COMPLETED, *ONCE[1:], COMPLETED], rows("a"), "doubled", 0, 0),
        ("succeeds", ONCE[:2], [], "stuck", 0, 0),
        ("succeeds", [*ONCE, CRASHED], [], "wrongly Crashed", 0, 0),
        ("succeeds", [*ONCE, CRASHED], rows("a", outcome=None), "wrongly Crashed", 1, 0),
        # The pod `pod-killed` was killed by a fault.
        ("succeeds", [*ONCE, CRASHED], rows("killed", outcome=None), "Crashed with its pod", 0, 0),
        (
            "succeeds",
            [*ONCE, ("SCHEDULED", "AwaitingRetry"), *ONCE[1:], COMPLETED],
            [*rows("killed", outcome=None), *rows("b", attempt=2)],
            "right",
            0,
            0,
        ),
        ("succeeds", [*ONCE, COMPLETED], rows("killed"), "right", 0, 0),
        # The pod `pod-ended` had time to reschedule its run.
        ("succeeds", [*ONCE, CRASHED], rows("ended", outcome=None), "wrongly Crashed", 0, 0),
        (
            "succeeds",
            [*ONCE, ("SCHEDULED", "AwaitingRetry"), *ONCE[1:], COMPLETED],
            [*rows("ended"), *rows("b", attempt=2, at=1.5)],
            "doubled",
            0,
            0,
        ),
    ],
)
def test_a_run_is_classified(
    kind: str,
    states: list[tuple[str, str]],
    written: list[dict[str, Any]],
    word: str,
    lost: int,
    doubled: int,
) -> None:
    ended = {"pod-killed", "pod-ended"}
    verdict = judge(Run("run", kind, states), written, hit=ended, forced={"pod-killed"})
    assert (verdict.word, verdict.rows_lost, verdict.rows_doubled) == (word, lost, doubled)
    report = Report("")
    report.add(verdict)
    good = word in ("right", "Crashed with its pod") and not (lost or doubled)
    assert (report.bad == {}) == good


def test_the_longest_gap_includes_start_and_end() -> None:
    starts = [{"event": "start", "arrived": at} for at in (3.0, 4.0, 9.0)]
    assert longest_gap(starts, since=0.0, until=10.0) == 5.0
    assert longest_gap([], since=0.0, until=10.0) == 10.0
