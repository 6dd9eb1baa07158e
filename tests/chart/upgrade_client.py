"""What the clients of an older Prefect do, before its server is upgraded and meanwhile.

Usage: upgrade_client.py prepare    (prints what it has made as JSON)
       upgrade_client.py survive FILE    (a flow run that goes on when FILE exists)
"""

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.states import Scheduled
from prefect.variables import Variable


@task
def double(number: int) -> int:
    return 2 * number


@flow
def completes() -> int:
    get_run_logger().info("said by the old client")
    return double(21)


@flow
def survives(file: str) -> int:
    while not Path(file).exists():
        time.sleep(0.1)
    return double(21)


def prepare() -> dict[str, str]:
    """Leave one of each on the server; returns their ids."""
    state = completes(return_state=True)
    Secret(value="kept").save("kept")
    Variable.set("kept", "value")
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(completes)
        deployment_id = client.create_deployment(
            flow_id,
            "daily",
            schedules=[
                DeploymentScheduleCreate(
                    schedule=CronSchedule(cron="0 9 * * *", timezone="America/Chicago")
                )
            ],
        )
        later = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1))
        scheduled = client.create_flow_run_from_deployment(deployment_id, state=later)
    return {
        "completed": str(state.state_details.flow_run_id),
        "deployment": str(deployment_id),
        "scheduled": str(scheduled.id),
    }


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        sys.stdout.write(json.dumps(prepare()))
    else:
        survives(sys.argv[2])
