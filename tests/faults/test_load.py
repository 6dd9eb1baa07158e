"""A load of flow runs while pods drawn from a seed are deleted, by force or not."""

import time
from collections.abc import Callable

import pytest

from tests.faults.breaking import Draws
from tests.faults.conftest import RUNS
from tests.faults.load import ClusterLoad
from tests.faults.verdict import Report, table

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(7200)]


def test_no_run_is_lost_stuck_or_doubled(
    load: ClusterLoad, profile: str, seed: int, reports: list[Report], say: Callable[[str], None]
) -> None:
    say(f"seed {seed}: {RUNS} runs, {profile}")
    began = time.monotonic()
    draws = Draws(load, seed, lambda text: say(f"{time.monotonic() - began:5.0f} s  {text}"))
    with draws.going_on():
        load.run(seed, RUNS)
    load.measure_recovery()
    report = load.settle(f"{profile}, seed {seed}")
    reports.append(report)
    say("\n\n".join(report.wrong))
    say(table([report]))
    assert report.bad == {}, f"seed {seed}"
