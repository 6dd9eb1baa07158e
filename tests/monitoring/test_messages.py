"""Each preset of the alerts sends a message for its real cause on the cluster; the seconds."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.clusters import WALKTHROUGH
from tests.monitoring.conftest import Message, Monitored, cancelled, eat_memory, no_pod_fits
from tests.receiver import Receiver, receiving

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900), pytest.mark.usefixtures("runs")]

PRESETS: dict[str, dict[str, Any]] = {
    "failed": {"interval": 0},
    "late": {"seconds": 10},
    # Of this one only: another pod, too, may take longer on a busy machine.
    "pending": {"seconds": 10, "deployments": ["without-room"]},
    "pool": {"seconds": 10},
    "zombie": {"enabled": True, "seconds": 90},
    "quality": {},
}


@pytest.fixture(scope="module")
def receiver(cluster: Monitored, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with receiving(cluster, tmp_path_factory.mktemp("receiver"), PRESETS) as receiver:
        yield receiver


def test_each_preset_sends_one_message(
    cluster: Monitored, receiver: Receiver, messages: list[Message]
) -> None:
    frozen = cluster.start(cluster.probe("waits", name="frozen"))
    cluster.wait_for_state(frozen, "Running")

    subjects: list[str] = []

    def arrives(cause: str, preset: str, subject: str, since: datetime) -> None:
        subjects.append(subject)
        seconds = receiver.seconds(subject, since)
        messages.append(Message(cause, preset, PRESETS[preset].get("seconds", 0), seconds))

    def ends(run: str, state: str) -> datetime:
        return datetime.fromisoformat(cluster.wait_for_state(run, state)["state"]["timestamp"])

    began = ends(cluster.start(WALKTHROUGH, should_fail=True), "Failed")
    arrives("A flow run fails", "failed", "ui-walkthrough-retries failed", began)

    began = ends(eat_memory(cluster), "Crashed")
    arrives("A flow run crashes: out of memory", "failed", "eats-memory crashed", began)

    run = cluster.wait_for_state(cluster.start(cluster.probe("breaches")), "Completed")
    began = datetime.fromisoformat(run["start_time"])
    subject = "breaches: the quality of data is too low"
    arrives("A flow reports that the quality is too low", "quality", subject, began)

    began = datetime.now(UTC)
    without_room = cluster.probe("waits", name="without-room")
    pending = cluster.start(without_room, job_variables=no_pod_fits())
    arrives("A pod that fits on no node", "pending", "waits does not start", began)
    cancelled(cluster, pending)

    (pod,) = cluster.pods(frozen)
    began = datetime.now(UTC)
    # Neither the worker nor Kubernetes sees it: the container runs.
    cluster.kubectl("exec", pod["metadata"]["name"], "--", "sh", "-c", "kill -STOP -1", check=False)
    arrives("The processes of a flow pod are frozen", "zombie", "waits sends no heartbeat", began)

    began = datetime.now(UTC)
    cluster.scale("deploy/worker-kubernetes", 0)
    late = cluster.start(cluster.probe("tells"), variable="HOME")
    arrives("Worker scaled to 0, and a run is due", "late", "tells is late", began)
    subject = "The work pool kubernetes has no worker"
    arrives("Worker scaled to 0", "pool", subject, began)
    cancelled(cluster, late)
    cluster.scale("deploy/worker-kubernetes", 1)
    cluster.kubectl("delete", "job", f"--selector=prefect.io/flow-run-id={frozen}")

    assert all(len(receiver.messages(subject)) == 1 for subject in subjects)
