"""A slot of the limit on writers: how many runs write to the warehouse at once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run

from prefect_hamilton import warehouse

WRITE_LIMIT = "warehouse-writes"
# Seconds after which the slot of a killed writer is free again; a running writer renews its lease.
WRITE_LEASE = 60.0
# Seconds of waiting for a slot after which a run logs it, and after which it fails.
SLOT_NOTICE = 5.0
SLOT_TIMEOUT = 1800.0
NAMED_RUNS = 5


@contextmanager
def writing(flow_name: str, on_wait: Callable[[str], None]) -> Iterator[warehouse.Warehouse]:
    """Open the warehouse for writing, with the slot that bounds how many write at once.

    `flow_name` is the flow whose other runs may hold the slots.

    Raises:
        WarehouseError: It cannot be opened, or no slot became free within SLOT_TIMEOUT.

    """
    with (
        _write_slot(flow_name, on_wait),
        warehouse.connect(warehouse.warehouse_url(), on_wait=on_wait) as connection,
    ):
        yield connection


@contextmanager
def _write_slot(flow_name: str, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold a slot of the limit.

    When there is none within SLOT_NOTICE, `on_wait` is called with a sentence, from another thread.

    Raises:
        WarehouseError: None became free within SLOT_TIMEOUT.

    """
    limit = f"a slot of the global concurrency limit {WRITE_LIMIT}"
    notice = threading.Timer(
        SLOT_NOTICE,
        # With the context of this run: settings, ids.
        copy_context().run,
        [lambda: on_wait(f"Waiting for {limit}; {_other_runs(flow_name)}")],
    )
    notice.daemon = True
    slot = concurrency(
        WRITE_LIMIT, strict=False, lease_duration=WRITE_LEASE, timeout_seconds=SLOT_TIMEOUT
    )
    with ExitStack() as held:
        notice.start()
        try:
            held.enter_context(slot)
        except TimeoutError:
            raise warehouse.WarehouseError(
                f"Waited {SLOT_TIMEOUT:.0f} s for {limit}; {_other_runs(flow_name)}: wait for "
                "those runs or cancel them, or raise the limit, and run again"
            ) from None
        finally:
            notice.cancel()
        yield


def _other_runs(flow_name: str) -> str:
    """Name the runs that may hold a slot: Prefect's API does not report which of them does."""
    with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        found = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow_name])),
            flow_run_filter=FlowRunFilter(
                id=FlowRunFilterId(not_any_=[UUID(str(flow_run.get_id()))]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])),
            ),
            sort=FlowRunSort.START_TIME_ASC,
            limit=NAMED_RUNS,
        )
        if found:
            return f"other runs of this flow are running: {', '.join(run.name for run in found)}"
    return (
        "no other run of this flow is running; a killed run holds its slot for up to "
        f"{WRITE_LEASE:.0f} s"
    )
