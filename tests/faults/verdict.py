"""What became of each flow run, judged by its states and by the rows of its executions."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
EARNED = {"fails": ("FAILED", "failed"), "eats_memory": ("CRASHED", "")}
"""The state that a flow's code earns, and the outcome in its last row, where not Completed."""


@dataclass
class Run:
    """A flow run as the server tells of it."""

    id: str
    kind: str
    states: list[tuple[str, str]]
    """Types and names, the oldest first; none if the server does not know the run."""


@dataclass
class Verdict:
    """The outcome of a run."""

    word: str
    rows_lost: int = 0
    rows_doubled: int = 0


def judge(
    run: Run,
    rows: Sequence[Mapping[str, Any]],
    hit: Collection[str] = (),
    forced: Collection[str] = (),
) -> Verdict:
    """Return the verdict on a run; `hit` are the pods that a fault ended, `forced` those at once.

    An execution in such a pod may begin again in another, after it. Any other one counts: a run has
    exactly one of them, and, if its flow retries, those that failed before.
    """
    earned, outcome = EARNED.get(run.kind, ("COMPLETED", "ok"))
    if not run.states:
        return Verdict("lost")
    starts = [row for row in rows if row["event"] == "start"]
    ends = [row for row in rows if row["event"] == "end" and row["outcome"] == outcome]
    retried = {
        row["execution"]
        for row in rows
        if run.kind == "retries" and row.get("outcome") == "failed" and row["attempt"] == 1
    }
    counted = [r for r in starts if r["pod"] not in hit and r["execution"] not in retried]
    counted_ends = [row for row in ends if row["pod"] not in hit]
    ended = {row["execution"] for row in rows if row["event"] == "end"}
    state = run.states[-1][0]
    verdict = Verdict("right")
    verdict.rows_doubled = max(0, len(counted) - 1) + max(0, len(counted_ends) - 1)
    if state in FINAL and outcome:
        verdict.rows_lost = sum(row["execution"] not in ended for row in counted)
    if _went_on_after(run, earned) or len(counted_ends) > 1 or _overlap(rows):
        verdict.word = "doubled"
    elif state not in FINAL:
        verdict.word = "stuck"
    elif state == earned:
        if outcome and not ends:
            verdict.word = "lost"
            verdict.rows_lost += 1
    elif state == "CRASHED":
        # A flow that had begun in a pod that was killed at once may crash with it. One that was
        # ended has time to reschedule its run.
        began = any(row["pod"] in forced for row in starts)
        verdict.word = "Crashed with its pod" if began and not counted else "wrongly Crashed"
    else:
        verdict.word = "otherwise wrong"
    return verdict


def _went_on_after(run: Run, earned: str) -> bool:
    """Whether the run left the state that its code earned."""
    types = [kind for kind, _ in run.states]
    return earned != "CRASHED" and any(kind not in FINAL for kind in types[_first(types, earned) :])


def _overlap(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an execution wrote a row after a later attempt, in another pod, had begun."""
    return any(
        later["event"] == "start"
        and later["pod"] != row["pod"]
        and later["attempt"] > row["attempt"]
        and later["arrived"] < row["arrived"]
        for row in rows
        for later in rows
    )


def _first(types: list[str], earned: str) -> int:
    return types.index(earned) if earned in types else len(types)


@dataclass
class Report:
    """A line of the table: numbers of runs and rows, and seconds."""

    what: str
    created: int = 0
    right: int = 0
    crashed_with_pod: int = 0
    lost: int = 0
    doubled: int = 0
    stuck: int = 0
    wrongly_crashed: int = 0
    otherwise_wrong: int = 0
    rows_lost: int = 0
    rows_doubled: int = 0
    slots_missed: int = 0
    events_missed: int = 0
    longest_gap: float = 0
    to_normal: float = 0
    faults: int = 0
    in_standby_pods: int = 0
    wrong: list[str] = field(default_factory=list, repr=False)
    """A paragraph about each run that is not right."""

    def add(self, verdict: Verdict) -> None:
        """Count a run."""
        self.created += 1
        self.rows_lost += verdict.rows_lost
        self.rows_doubled += verdict.rows_doubled
        name = {"Crashed with its pod": "crashed_with_pod"}.get(verdict.word)
        name = name or verdict.word.replace(" ", "_").lower()
        setattr(self, name, getattr(self, name) + 1)

    @property
    def bad(self) -> dict[str, int]:
        """The columns that must be 0 and are not.

        `events_missed` is not among them: an event that was in a killed process is gone, so the
        run that an automation would have created has never been one.
        """
        columns = "lost doubled stuck wrongly_crashed otherwise_wrong rows_lost rows_doubled"
        found = {name: getattr(self, name) for name in (*columns.split(), "slots_missed")}
        return {name: number for name, number in found.items() if number}


COLUMNS = [each.name for each in fields(Report) if each.name != "wrong"]


def table(reports: Sequence[Report]) -> str:
    """Return the reports as a table."""
    head = [name.replace("_", " ") for name in COLUMNS]
    body = [
        [
            f"{v:.0f}" if isinstance(v := getattr(report, name), float) else str(v)
            for name in COLUMNS
        ]
        for report in reports
    ]
    widths = [max(len(line[n]) for line in [head, *body]) for n in range(len(head))]
    return "\n".join(
        " | ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *body]
    )


def longest_gap(rows: Sequence[Mapping[str, Any]], since: float, until: float) -> float:
    """Return the longest time between two starts, or a start and an end of the period."""
    starts = sorted(row["arrived"] for row in rows if row["event"] == "start")
    times = [since, *(at for at in starts if since < at < until), until]
    return max(later - earlier for earlier, later in pairwise(times))
