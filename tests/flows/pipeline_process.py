"""Runs the data pipeline once in a process of its own: `python -m tests.flows.pipeline_process`.

Arguments: batch size and, to run again what was killed, the flow run's id.
"""

import sys
from uuid import UUID

from prefect import get_client
from prefect.flow_engine import run_flow
from prefect.states import Pending

from flows.data_pipeline import enterprise_data_pipeline

if __name__ == "__main__":
    parameters = {"batch_size": int(sys.argv[1])}
    flow_run = None
    if len(sys.argv) > 2:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(sys.argv[2]), Pending(), force=True)
            flow_run = client.read_flow_run(UUID(sys.argv[2]))
    state = run_flow(
        enterprise_data_pipeline, flow_run=flow_run, parameters=parameters, return_type="state"
    )
    sys.exit(0 if state.is_completed() else 1)
