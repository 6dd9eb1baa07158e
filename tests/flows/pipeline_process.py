"""Runs the data pipeline once in a separate process: `python -m tests.flows.pipeline_process`.

Arguments: batch size; the number of transactions after which the process kills itself, 0 for never;
and, to run again what was killed, the flow run's id.
"""

import os
import signal
import sys
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.flow_engine import run_flow
from prefect.states import Pending

from flows import metrics_load
from flows.data_pipeline import enterprise_data_pipeline


def kill_after(transactions: int) -> None:
    """Let this process end as by `kill -9`, in the middle of its load."""
    write = metrics_load.write

    def killed(*arguments: Any, **options: Any) -> Any:
        for number, done in enumerate(write(*arguments, **options), start=1):
            yield done
            if number == transactions:
                os.kill(os.getpid(), signal.SIGKILL)

    metrics_load.write = killed


if __name__ == "__main__":
    parameters = {"batch_size": int(sys.argv[1])}
    if transactions := int(sys.argv[2]):
        kill_after(transactions)
    flow_run = None
    if len(sys.argv) > 3:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(sys.argv[3]), Pending(), force=True)
            flow_run = client.read_flow_run(UUID(sys.argv[3]))
    state = run_flow(
        enterprise_data_pipeline, flow_run=flow_run, parameters=parameters, return_type="state"
    )
    sys.exit(0 if state.is_completed() else 1)
