"""`prefect.yaml` holds the same flows for a laptop and for Kubernetes."""

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent

ROOT = Path(__file__).parents[2]
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())[
    "deployments"
]
GIT_CLONE = "prefect.deployments.steps.git_clone"


def in_pool(pool: str) -> list[dict[str, Any]]:
    return [d for d in DEPLOYMENTS if d["work_pool"]["name"] == pool]


def by_name(name: str) -> dict[str, Any]:
    return next(d for d in DEPLOYMENTS if d["name"] == name)


def test_each_deployment_is_in_one_of_the_two_pools() -> None:
    pools = {d["work_pool"]["name"] for d in DEPLOYMENTS}
    assert pools == {"local-process-pool", "kubernetes"}


def test_both_profiles_hold_the_same_flows() -> None:
    differing = {"name", "work_pool", "pull", "triggers"}

    def common(deployments: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in d.items() if k not in differing} for d in deployments]

    assert common(in_pool("local-process-pool")) == common(in_pool("kubernetes"))


def test_deployment_names_are_unique_and_end_in_k8s_on_kubernetes_only() -> None:
    names = [d["name"] for d in DEPLOYMENTS]
    assert len(set(names)) == len(names)
    assert all(d["name"].endswith("-k8s") for d in in_pool("kubernetes"))
    assert not any(d["name"].endswith("-k8s") for d in in_pool("local-process-pool"))


@pytest.mark.parametrize(
    ("name", "flow_name"),
    [
        ("production-etl", "Enterprise Data Pipeline"),
        ("absenteeism-local", "hamilton-absenteeism-prediction"),
        ("walkthrough", "ui-walkthrough-retries"),
        ("after-production-etl", "Metrics Quality Report"),
    ],
)
def test_every_entrypoint_imports(
    name: str, flow_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    flow: Flow[..., Any] = load_flow_from_entrypoint(by_name(name)["entrypoint"])
    assert flow.name == flow_name


@pytest.mark.parametrize("deployment", in_pool("kubernetes"), ids=lambda d: str(d["name"]))
def test_no_kubernetes_deployment_uses_a_local_path(deployment: dict[str, Any]) -> None:
    (step,) = deployment["pull"]
    assert list(step) == [GIT_CLONE]
    assert step[GIT_CLONE]["repository"] == "{{ $FLOWS_REPOSITORY }}"
    assert "path" not in deployment
    assert not deployment["entrypoint"].startswith(("/", "~", "."))


def completed(flow: str, deployment: str) -> ReceivedEvent:
    """The event of a flow run that has completed, with what a trigger may look at."""
    related = [
        {
            "prefect.resource.id": f"prefect.{role}.{uuid.uuid4()}",
            "prefect.resource.role": role,
            "prefect.resource.name": name,
        }
        for role, name in (("flow", flow), ("deployment", deployment), ("work-pool", "pool"))
    ]
    return ReceivedEvent.model_validate(
        {
            "occurred": datetime.now(UTC),
            "event": "prefect.flow-run.Completed",
            "resource": {"prefect.resource.id": f"prefect.flow-run.{uuid.uuid4()}"},
            "related": related,
            "id": uuid.uuid4(),
        }
    )


@pytest.mark.parametrize(("suffix", "other"), [("", "-k8s"), ("-k8s", "")])
def test_the_report_follows_the_pipeline_of_its_own_profile(suffix: str, other: str) -> None:
    (written,) = by_name(f"after-production-etl{suffix}")["triggers"]
    # The server's own, without what only `prefect deploy` reads.
    trigger = EventTrigger.model_validate(
        {key: value for key, value in written.items() if key != "parameters"}
        | {"posture": "Reactive"}
    )
    pipeline = "Enterprise Data Pipeline"
    assert trigger.covers(completed(pipeline, f"production-etl{suffix}"))
    assert not trigger.covers(completed("Another flow", f"production-etl{suffix}"))
    assert not trigger.covers(completed(pipeline, f"nightly{suffix}"))
    assert not trigger.covers(completed(pipeline, f"production-etl{other}"))
    # The names the other way round.
    assert not trigger.covers(completed(f"production-etl{suffix}", pipeline))


def test_schedules() -> None:
    assert by_name("production-etl")["schedules"] == [
        {"cron": "0 9 * * *", "timezone": "America/Chicago"}
    ]
    assert by_name("absenteeism-local")["schedules"] == [
        {"interval": 3600, "timezone": "America/Los_Angeles"}
    ]
