"""An event whose evaluation the database could not store at first has one action, not several."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from prefect.server.events.schemas.automations import Automation, Firing
from prefect.server.events.schemas.events import ReceivedEvent
from psycopg import sql

from prefect_hamilton.server.repeated_actions import RepeatableAction
from tests import services
from tests.profiles import wait_until
from tests.server.runs import Api

pytestmark = pytest.mark.services

TRIGGER = {
    "type": "event",
    "posture": "Reactive",
    "expect": ["something"],
    "for_each": ["prefect.resource.id"],
    "threshold": 1,
    "within": 0,
}
FAILURES = 3
FAIL_AT_COMMIT = f"""
CREATE SEQUENCE commits;
CREATE FUNCTION fail_at_first() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF nextval('commits') <= {FAILURES} THEN
    RAISE EXCEPTION 'the disk is full';
  END IF;
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER fail_at_first AFTER INSERT ON automation_bucket
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail_at_first();
"""
"""The counter of a sequence goes on also where a transaction fails."""


@pytest.fixture
def database(postgres: str) -> str:
    return services.create_database(postgres, "repeated_actions")


@pytest.fixture
def api(database: str, tmp_path: Path) -> Iterator[Api]:
    with services.prefect_server(
        tmp_path,
        program=services.OWN_SERVER,
        background_services=True,
        PREFECT_API_DATABASE_CONNECTION_URL=services.as_prefects(database),
    ) as server:
        yield Api(server.url)


def happens(api: Api, what: str) -> None:
    """Send an event about a resource."""
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "something",
        "resource": {"prefect.resource.id": what},
    }
    api.post_list("/events", [event])


def causes(api: Api, deployment: str) -> list[Any]:
    """The parameters with which automations have run a deployment."""
    found = api.post("/flow_runs/filter", deployments={"id": {"any_": [deployment]}})
    return sorted(each["parameters"]["cause"] for each in found)


def count(connection: psycopg.Connection[Any], sequence: str) -> int:
    """The last number of a sequence."""
    query = sql.SQL("SELECT last_value FROM {}").format(sql.Identifier(sequence))
    row = connection.execute(query).fetchone()
    assert row
    return int(row[0])


def test_an_event_that_is_evaluated_again_creates_one_flow_run(api: Api, database: str) -> None:
    flow = api.post("/flows/", name="follows")["id"]

    def follow(name: str, trigger: dict[str, Any], cause: str) -> tuple[str, str]:
        """Return the ids of an automation and of the deployment that it runs with a parameter."""
        deployment: str = api.post("/deployments/", name=name, flow_id=flow)["id"]
        run = {"type": "run-deployment", "source": "selected", "deployment_id": deployment}
        actions = [{**run, "parameters": {"cause": cause}}]
        automation = api.post("/automations/", name=name, trigger=trigger, actions=actions)
        return automation["id"], deployment

    first, deployment = follow("first", TRIGGER, "{{ event.resource.id }}")
    triggered = TRIGGER | {
        "expect": ["prefect.automation.triggered"],
        "match": {"prefect.resource.id": f"prefect.automation.{first}"},
    }
    cause = "{{ event.payload.triggering_event.resource['prefect.resource.id'] }}"
    _, next_deployment = follow("next", triggered, cause)

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(FAIL_AT_COMMIT)

        happens(api, "first")
        wait_until(lambda: count(connection, "commits") > FAILURES)
    # Its actions come after those of the first one.
    happens(api, "second")
    wait_until(lambda: "second" in causes(api, next_deployment))
    assert causes(api, deployment) == causes(api, next_deployment) == ["first", "second"]


FAIL_WITHOUT_END = """
CREATE SEQUENCE attempts;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM nextval('attempts');
  RAISE EXCEPTION 'it cannot be stored';
END $$;
CREATE CONSTRAINT TRIGGER fail AFTER INSERT OR UPDATE ON automation_bucket
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.automation_id = '{automation}')
EXECUTE FUNCTION fail();
"""


ATTEMPTS = 4
"""How often a server with its own broker evaluates an event."""


def test_an_automation_counts_an_event_once_though_another_one_fails(
    api: Api, database: str
) -> None:
    """Prefect evaluates them in any order: each fails once, so that one fails after the other."""
    flow = api.post("/flows/", name="counts")["id"]
    deployment: str = api.post("/deployments/", name="counts", flow_id=flow)["id"]

    def automation_of(name: str, threshold: int) -> str:
        run = {"type": "run-deployment", "source": "selected", "deployment_id": deployment}
        trigger = TRIGGER | {"threshold": threshold, "within": 600}
        actions = [{**run, "parameters": {"cause": "{{ event.resource.id }}"}}]
        found = api.post("/automations/", name=name, trigger=trigger, actions=actions)
        return str(found["id"])

    both = [automation_of(name, 2) for name in ("one", "other")]

    def react() -> bool:
        """Whether the service has learned of both."""
        happens(api, "before")
        return causes(api, deployment).count("before") >= 2

    wait_until(react)
    with psycopg.connect(database, autocommit=True) as connection:
        for fails in both:
            connection.execute(FAIL_WITHOUT_END.format(automation=fails))
            happens(api, f"once, {fails}")
            wait_until(lambda: count(connection, "attempts") == ATTEMPTS)
            connection.execute("DROP FUNCTION fail CASCADE; DROP SEQUENCE attempts")
    for _ in range(2):
        happens(api, "twice")
    wait_until(lambda: causes(api, deployment).count("twice") == 2)
    assert {cause for cause in causes(api, deployment) if cause.startswith("once")} == set()


def something() -> ReceivedEvent:
    resource = {"prefect.resource.id": "anything"}
    return ReceivedEvent(
        occurred=datetime.now(UTC), event="something", resource=resource, id=uuid4()
    )


def action(automation: Automation, event: ReceivedEvent, *causes: Firing) -> RepeatableAction:
    """An action of the automation, whose trigger has fired for an event."""
    firing = fire(automation.trigger, event, *causes)
    return RepeatableAction(
        automation=automation,
        firing=firing,
        triggered=firing.triggered,
        triggering_labels={},
        triggering_event=firing.triggering_event,
        action=automation.actions[0],
    )


def fire(trigger: Any, event: ReceivedEvent, *causes: Firing) -> Firing:
    return Firing(
        trigger=trigger,
        trigger_states={"Triggered"},
        triggered=datetime.now(UTC),
        triggering_firings=list(causes),
        triggering_event=event,
    )


def automation(trigger: dict[str, Any]) -> Automation:
    return Automation(name="acts", trigger=trigger, actions=[{"type": "do-nothing"}])


def test_an_action_is_the_same_only_for_the_same_events() -> None:
    reacts, event = automation(TRIGGER), something()
    first, again, other = (action(reacts, each).id for each in (event, event, something()))
    assert first == again != other


def test_a_proactive_trigger_fires_repeatedly_after_the_same_event() -> None:
    waits, event = automation(TRIGGER | {"posture": "Proactive", "within": 30}), something()
    first, again = (action(waits, event).id for _ in range(2))
    assert first != again


def test_two_triggers_of_a_compound_one_may_fire_for_the_same_event() -> None:
    children = [TRIGGER, TRIGGER | {"expect": ["something", "more"]}]
    either = automation({"type": "compound", "require": "any", "triggers": children, "within": 60})
    event = something()
    one, other = either.trigger.triggers
    by_one, by_other, again = (
        action(either, event, fire(child, event)).id for child in (one, other, other)
    )
    assert by_one != by_other == again
