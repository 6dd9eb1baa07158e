"""Outages do not end the worker of the local profile, and crash no run that has not started."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import anyio
import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessWorker

from prefect_hamilton.worker import process, taking_up, wake
from prefect_hamilton.worker.taking_up import WAITS
from tests import services
from tests.worker.conftest import Pool
from tests.worker.test_worker import until

pytestmark = [pytest.mark.services, pytest.mark.anyio]


@asynccontextmanager
async def working(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[process.Worker]:
    monkeypatch.setattr(wake, "get_events_subscriber", Mock(side_effect=ConnectionError))
    monkeypatch.setattr(process, "CAN_FORK", False)
    async with process.Worker(work_pool_name=pool.name, create_pool_if_not_found=False) as worker:
        yield worker


@pytest.fixture
def pool(own_server: services.Service) -> Iterator[Pool]:
    template = ProcessWorker.get_default_base_job_template()
    pool = Pool(own_server, template, type_="process")
    with temporary_settings({PREFECT_API_URL: f"{own_server.url}/api"}):
        yield pool


async def refuse(*_: Any, **__: Any) -> None:
    """What a request comes to while the server is restarted."""
    raise httpx.ConnectError("All connection attempts failed")


async def test_a_run_that_an_outage_kept_from_its_process_waits_again(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API answers again after the first request that would set a state."""
    run = pool.new_run()
    answers = [refuse, refuse]

    async with working(pool, monkeypatch) as worker:
        hello = worker.client.hello

        async def answer() -> Any:
            return await (answers.pop()() if answers else hello())

        monkeypatch.setattr(worker.client, "hello", answer)
        monkeypatch.setattr(worker, "_give_worker_labels_to_flow_run", refuse)
        await worker.get_and_submit_flow_runs()
        await until(lambda: pool.api.state(run)["name"] not in ("Scheduled", "Pending"))

    state = pool.api.state(run)
    assert (state["name"], answers) == ("AwaitingRetry", [])
    assert state["message"].startswith(WAITS)


async def test_a_run_goes_on_whose_pending_was_accepted_but_answered_too_late(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine sleeps between the request and its answer, so that the time is over first."""
    run = pool.new_run()
    monkeypatch.setattr(taking_up, "PROPOSAL_SECONDS", 0.5)
    async with working(pool, monkeypatch) as worker:
        request = worker.client.request
        lost: list[httpx.Response] = []

        async def sleep(method: Any, path: Any, **options: Any) -> httpx.Response:
            response: httpx.Response = await request(method, path, **options)
            if path.endswith("/set_state") and not lost:
                lost.append(response)
                await anyio.sleep_forever()
            return response

        monkeypatch.setattr(worker.client, "request", sleep)
        # As measured before: a state that is as old as the sleep says nothing about clocks.
        ahead = worker._server_ahead = timedelta(hours=1)
        [found] = await worker._get_scheduled_flow_runs()
        assert await worker._propose_pending_state(found.flow_run)
        assert worker._server_ahead == ahead

    assert lost[0].json()["status"] == "ACCEPT"
    assert pool.api.states(run) == ["SCHEDULED", "PENDING"]
    assert worker._attempts[run] == UUID(pool.api.state(run)["id"])


async def test_an_outage_does_not_end_the_worker(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pool.new_run()
    async with working(pool, monkeypatch) as worker:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker.client, "read_deployment", refuse)
            await worker.get_and_submit_flow_runs()
            await until(lambda: run not in worker._submitting_flow_run_ids)
        assert pool.api.state(run)["type"] == "SCHEDULED"

        # The next poll finds the run.
        found = await worker._get_scheduled_flow_runs()
        assert [each.flow_run.id for each in found] == [run]


async def test_an_outage_that_does_not_end_does_not_end_the_worker(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`up` finds the run: the worker has not set its state."""
    run = pool.new_run()
    async with working(pool, monkeypatch) as worker:
        monkeypatch.setattr(worker, "_await_answer", refuse)
        monkeypatch.setattr(worker, "_give_worker_labels_to_flow_run", refuse)
        await worker.get_and_submit_flow_runs()
        await until(lambda: run not in worker._submitting_flow_run_ids)
    assert pool.api.state(run)["type"] == "PENDING"
