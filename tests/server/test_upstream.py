"""The behaviour of Prefect's own server. If a test passes, the project's rule can be removed."""

import pytest

from tests import services
from tests.server.runs import FINAL, Api
from tests.server.test_retries import Waiting

pytestmark = pytest.mark.services


@pytest.mark.xfail(strict=True, reason="Prefect 3.9.1 accepts Pending after a final state")
@pytest.mark.parametrize("final", FINAL)
def test_pending_is_refused_for_a_run_that_has_ended(
    prefect_server: services.Service, final: str
) -> None:
    """Worker A proposes Pending and its request hangs; worker B runs the flow run to its end."""
    api = Api(prefect_server.url)
    run = api.new_run()
    for state in ("PENDING", "RUNNING", final):
        assert api.propose(run, state) == "ACCEPT"

    assert api.propose(run, "PENDING") == "ABORT"


@pytest.mark.xfail(strict=True, reason="Prefect 3.9.1 accepts Running without Pending")
def test_running_is_refused_for_a_run_that_waits_for_another_pod(
    prefect_server: services.Service,
) -> None:
    """A pod that ends reschedules its flow run while the engine in it proposes Running."""
    waiting = Waiting(Api(prefect_server.url))
    waiting.reschedule()

    assert waiting.api.propose(waiting.run, "RUNNING") == "ABORT"
