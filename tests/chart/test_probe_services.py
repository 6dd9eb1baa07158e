"""The probe of the background services: how it judges heartbeats, and that they are Prefect's."""

import importlib.util
import inspect
import os
import socket
from types import ModuleType

import pytest
from docket import Docket, Worker
from prefect.cli import _server_utils

from tests.chart.charts import CHART

NOW = 1_000_000.0


@pytest.fixture
def probe() -> ModuleType:
    path = CHART / "files/scripts/probe_services.py"
    spec = importlib.util.spec_from_file_location("probe_services", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "heartbeats",
    [
        {"pod-a#7": NOW - 2},
        {"pod-a#7": NOW - 900, "pod-a#8": NOW - 2, "pod-b#7": NOW - 900},
    ],
)
def test_a_pod_with_a_recent_heartbeat_is_alive(
    probe: ModuleType, heartbeats: dict[str, float]
) -> None:
    assert probe.judge(heartbeats, "pod-a", NOW) == (True, "")


@pytest.mark.parametrize(
    "heartbeats", [{"pod-a#7": NOW - 61}, {"pod-b#7": NOW - 2}, {"pod-a-b#7": NOW - 2}]
)
def test_a_pod_without_a_heartbeat_is_dead(probe: ModuleType, heartbeats: dict[str, float]) -> None:
    assert probe.judge(heartbeats, "pod-a", NOW) == (
        False,
        "No heartbeat of pod-a in the last 60 s.",
    )


@pytest.mark.parametrize("heartbeats", [{}, {"worker-5f0c": NOW - 900}])
def test_unknown_heartbeats_do_not_end_a_pod(
    probe: ModuleType, heartbeats: dict[str, float]
) -> None:
    alive, said = probe.judge(heartbeats, "pod-a", NOW)

    assert alive
    assert said == "Taken for alive: prefect:workers holds no heartbeat of the form host#pid."


def test_the_heartbeats_are_those_of_the_installed_prefect(probe: ModuleType) -> None:
    # `prefect server services start` names its docket itself.
    assert 'name="prefect"' in inspect.getsource(_server_utils)
    docket = Docket(name="prefect", url="memory://")
    assert docket.workers_set == probe.WORKERS
    assert Worker(docket).name == f"{socket.gethostname()}#{os.getpid()}"
