"""What an automation does for an event is done once, also if the event is evaluated again.

Prefect publishes the actions of an automation before it commits the evaluation of the event. If
the database fails at that moment, the event is evaluated again, and its actions are published with
new ids: a flow run was created each time. With ids that follow from the cause, Prefect recognizes
an action that it has done, and the server a flow run that exists.
"""

from typing import Any
from uuid import UUID, uuid5

from prefect.server.events import triggers
from prefect.server.events.schemas.automations import (
    EventTrigger,
    Firing,
    Posture,
    TriggeredAction,
)

NAMESPACE = UUID("bcf1f1f2-1548-4b07-b967-7e4124678363")


class RepeatableAction(TriggeredAction):
    """An action with the same id each time the same events cause it."""

    def model_post_init(self, context: Any) -> None:
        """Derive the id from the events."""
        super().model_post_init(context)
        if self.firing and (events := _events(self.firing)):
            self.id = uuid5(NAMESPACE, f"{self.automation.id} {self.action_index} {events}")


def _events(firing: Firing) -> str | None:
    """Return the triggers that fired, with their events; None if they fire repeatedly for these.

    A proactive trigger fires because no event came, each time after the same last one.
    """
    found = []
    # Without those of triggers that fired because of their own triggers.
    for each in (each for each in firing.all_firings() if not each.triggering_firings):
        trigger, event = each.trigger, each.triggering_event
        if not isinstance(trigger, EventTrigger) or trigger.posture is not Posture.Reactive:
            return None
        if event is None:
            return None
        found.append(f"{trigger.id} {event.id}")
    return " ".join(sorted(found))


def recognize() -> None:
    """Give the actions of this process such ids."""
    setattr(triggers, "TriggeredAction", RepeatableAction)  # noqa: B010  # an import of Prefect's
