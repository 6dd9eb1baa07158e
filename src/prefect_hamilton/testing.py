"""Test flows and dataflows.

A test of a dataflow needs no Prefect: `dataflow.execute` returns its results, and `overrides`
replaces the results of nodes. A flow needs a server, which `prefect_harness` starts:

    @pytest.fixture(scope="session", autouse=True)
    def prefect():
        with testing.prefect_harness():
            yield

    def test_the_dataflow_needs_no_more_than_the_flow_gives():
        assert testing.inputs_of(features, ["table"]) == {"path": str}

    def test_the_flow_publishes_its_table():
        state = my_flow(return_state=True)
        assert "table" in testing.artifacts(state)

`prefect_harness` needs the package `prefect`; flow pods have its client alone.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact, State
from prefect.settings import PREFECT_SERVER_ANALYTICS_ENABLED, temporary_settings

from prefect_hamilton.dataflow import Dataflow, Modules

STARTUP_TIMEOUT = 180
"""Maximum number of seconds for Prefect's server to start; its first start creates a database."""


@contextmanager
def prefect_harness(startup_timeout: int = STARTUP_TIMEOUT) -> Iterator[None]:
    """Run flows on a temporary Prefect server, without a Hamilton UI (`prefect_test_harness`).

    Servers that the environment configures are not used.
    """
    from prefect.testing.utilities import prefect_test_harness

    kept = {name: value for name, value in os.environ.items() if not name.startswith("HAMILTON_")}
    with (
        mock.patch.dict(os.environ, kept, clear=True),
        temporary_settings({PREFECT_SERVER_ANALYTICS_ENABLED: False}),
        prefect_test_harness(server_startup_timeout=startup_timeout),
    ):
        yield


def inputs_of(
    modules: Modules, outputs: Sequence[str], *, config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """
    Return the names and types of the inputs from which the outputs are computed.

    Inputs with a default are included, values of the config are not. Raises what Hamilton raises
    for a dataflow whose nodes do not fit together, and ValueError for an output that is no node.
    """
    driver = Dataflow(modules, config or {}).driver()
    upstream = driver.what_is_upstream_of(*outputs)
    return {
        variable.name: variable.type
        for variable in upstream
        if variable.is_external_input and variable.name not in (config or {})
    }


def artifacts(state: State[Any]) -> dict[str, Artifact]:
    """Return the artifacts of the flow run that ended in this state, the latest of each key."""
    flow_run_id = state.state_details.flow_run_id
    if not isinstance(flow_run_id, UUID):
        raise ValueError(
            "This is not the state of a flow run: call the flow with return_state=True"
        )
    of_flow_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=of_flow_run)
    found.sort(key=lambda artifact: str(artifact.created))
    return {artifact.key: artifact for artifact in found if artifact.key}
