"""One named fault under a small load."""

import threading
from collections.abc import Callable

import pytest

from tests.faults.breaking import FAULTS, Fault, names
from tests.faults.conftest import SMALL
from tests.faults.load import ClusterLoad, component
from tests.faults.verdict import Report, table

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_named_fault(
    load: ClusterLoad, profile: str, fault: Fault, reports: list[Report], say: Callable[[str], None]
) -> None:
    if fault.needs and not names(load.cluster, component(fault.needs)):
        pytest.skip(f"{profile} has no {fault.needs}")
    errors: list[BaseException] = []

    def work() -> None:
        try:
            fault.happen(load)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    # In the middle of the load: runs of all ages.
    load.run(1, SMALL, lambda number: thread.start() if number == SMALL // 3 else None)
    thread.join()
    assert not errors, errors
    report = load.settle(f"{profile}: {fault.name}")
    reports.append(report)
    say("\n\n".join(report.wrong))
    say(table([report]))
    assert report.bad == {}
