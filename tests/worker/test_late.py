"""After an outage, a worker skips runs of a schedule that are too late, and no others."""

from uuid import UUID

import pytest

from prefect_hamilton.worker import late
from prefect_hamilton.worker.kubernetes import FLOW_RUN_LABEL
from tests.worker.conftest import Pool
from tests.worker.kubernetes_api import KubernetesApi
from tests.worker.test_worker import until, working

pytestmark = [pytest.mark.services, pytest.mark.anyio]


def runs_with_a_job(kubernetes: KubernetesApi) -> set[str]:
    return {job["metadata"]["labels"][FLOW_RUN_LABEL] for job in kubernetes.jobs.values()}


async def test_late_runs_of_a_schedule_are_skipped_and_the_newest_run(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(late.VARIABLE, "120")
    # Of every minute in which the server was away.
    scheduled = pool.schedule_since(minutes=4)
    by_a_person = str(pool.new_run(in_seconds=-240))
    pool.server.stop()
    pool.server.start()

    async with working(pool) as worker:
        await worker.get_and_submit_flow_runs()
        await until(lambda: not worker._submitting_flow_run_ids)

        started = runs_with_a_job(kubernetes)
        assert by_a_person in started
        assert started - {by_a_person} == set(scheduled[-2:])
        states = [pool.api.state(UUID(run)) for run in scheduled[:-2]]
        assert {(state["type"], state["name"]) for state in states} == {("CANCELLED", "Skipped")}
        assert "skips runs that are more than 120 s late" in states[0]["message"]

        # A person wants it nevertheless.
        pool.api.propose(UUID(scheduled[0]), "SCHEDULED", name="AwaitingRetry")
        await worker.get_and_submit_flow_runs()
        await until(lambda: scheduled[0] in runs_with_a_job(kubernetes))
