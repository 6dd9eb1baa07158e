"""The environment of a flow run in a Secret of its Job: `flows.storeEnvAsSecret`."""

import json
from collections.abc import Iterator

import pytest

from tests.cluster.conftest import standby_pods
from tests.clusters import Cluster, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

VALUE = "known-to-nobody-who-reads-jobs"


@pytest.fixture(scope="module", autouse=True)
def _secrets(cluster: Cluster) -> Iterator[None]:
    """The release with this value, and as before afterwards."""
    with standby_pods(cluster, 0, "--set", "flows.storeEnvAsSecret=true"):
        yield


@eventually
def wait_until_deleted(cluster: Cluster, secret: str) -> None:
    assert not cluster.kubectl("get", "secret", secret, "--ignore-not-found")


def test_a_run_reads_its_environment_from_a_secret_that_goes_with_its_job(
    cluster: Cluster,
) -> None:
    variables = {"env": {"OWN": VALUE}}
    run_id = cluster.start(cluster.probe("tells"), job_variables=variables, variable="OWN")

    cluster.wait_for_state(run_id, "Completed")
    cluster.wait_for_log(run_id, f"OWN is {VALUE}")
    of_the_run = ("-l", f"prefect.io/flow-run-id={run_id}")
    (job,) = cluster.get("jobs", *of_the_run)["items"]
    assert VALUE not in json.dumps([job, cluster.pods(run_id)])
    (secret,) = cluster.get("secrets", *of_the_run)["items"]
    (owner,) = secret["metadata"]["ownerReferences"]
    assert owner["uid"] == job["metadata"]["uid"]

    cluster.kubectl("delete", "job", job["metadata"]["name"])
    wait_until_deleted(cluster, secret["metadata"]["name"])
