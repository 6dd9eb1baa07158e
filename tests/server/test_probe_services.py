"""The probe of the background services: how it judges heartbeats, and that they are Prefect's."""

import inspect
import os
import socket

import pytest
from docket import Docket, Worker
from prefect.cli import _server_utils

from prefect_hamilton.server import probe_services

NOW = 1_000_000.0


@pytest.mark.parametrize(
    "heartbeats",
    [
        {"pod-a#7": NOW - 2},
        {"pod-a#7": NOW - 900, "pod-a#8": NOW - 2, "pod-b#7": NOW - 900},
    ],
)
def test_a_pod_with_a_recent_heartbeat_is_alive(heartbeats: dict[str, float]) -> None:
    assert probe_services.judge(heartbeats, "pod-a", NOW) == (True, "")


@pytest.mark.parametrize(
    "heartbeats", [{"pod-a#7": NOW - 61}, {"pod-b#7": NOW - 2}, {"pod-a-b#7": NOW - 2}]
)
def test_a_pod_without_one_is_dead(heartbeats: dict[str, float]) -> None:
    assert probe_services.judge(heartbeats, "pod-a", NOW) == (
        False,
        "No heartbeat of pod-a in the last 60 s.",
    )


@pytest.mark.parametrize("heartbeats", [{}, {"worker-5f0c": NOW - 900}])
def test_a_pod_is_not_ended_over_heartbeats_of_another_form(heartbeats: dict[str, float]) -> None:
    alive, said = probe_services.judge(heartbeats, "pod-a", NOW)

    assert alive
    assert said == "Assumed alive: prefect:workers contains no heartbeat of the form host#pid."


def test_the_heartbeats_are_those_of_the_installed_prefect() -> None:
    # `prefect server services start` names its docket itself.
    assert 'name="prefect"' in inspect.getsource(_server_utils)
    docket = Docket(name="prefect", url="memory://")
    assert docket.workers_set == probe_services.WORKERS
    assert Worker(docket).name == f"{socket.gethostname()}#{os.getpid()}"
