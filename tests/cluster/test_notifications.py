"""Messages of the alerts reach a pod in the cluster, through the NetworkPolicies of the chart."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import RELEASE, Cluster
from tests.receiver import Receiver, receiving

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


@pytest.fixture
def receiver(cluster: Cluster, tmp_path: Path) -> Iterator[Receiver]:
    presets = {"failed": {"interval": 0}, "pool": {"enabled": False}}
    with receiving(cluster, tmp_path, presets) as receiver:
        yield receiver


def test_a_failed_and_an_out_of_memory_run_send_one_message_each(
    cluster: Cluster, receiver: Receiver
) -> None:
    said = cluster.helm("test", RELEASE, "--timeout=180s", "--logs")
    assert "a message arrived through the channel receiver" in said
    runs = {
        "eats-memory crashed": cluster.start(
            cluster.probe("eats_memory"), job_variables={"memory_limit": "256Mi"}
        ),
        # There is no such file.
        "shows failed": cluster.start(cluster.probe("shows"), variables=[], files=["/absent"]),
    }
    for subject, run_id in runs.items():
        message = receiver.message(subject)
        run = cluster.flow_run(run_id)
        assert run["name"] in message["body"]
        assert f"/runs/flow-run/{run_id}" in message["body"]
        assert run["state"]["message"][:100] in message["body"]
    # A later message, after which none of the earlier ones is still on its way.
    cluster.helm("test", RELEASE, "--timeout=180s")
    assert all(len(receiver.messages(subject)) == 1 for subject in runs)
