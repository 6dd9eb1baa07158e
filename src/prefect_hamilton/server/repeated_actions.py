"""What an automation does for an event is done once, also if the event is evaluated again.

Prefect publishes the actions of an automation before it commits the evaluation of the event. If
the database fails at that moment, the event is evaluated again, and its actions are published with
new ids: a flow run was created each time. With ids that follow from the cause, Prefect recognizes
an action that it has done, and the server a flow run that exists. The same is true of the event
that an automation was triggered, for which other automations may act.

Each automation is evaluated in a transaction of its own. One that has counted the event does not
count it again if the evaluation of another one failed.
"""

from functools import wraps
from typing import Any
from uuid import UUID, uuid5

from prefect.server.events import triggers
from prefect.server.events.schemas.automations import (
    CompositeTrigger,
    EventTrigger,
    Firing,
    Posture,
    TriggeredAction,
    TriggerState,
)
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.types._datetime import DateTime
from sqlalchemy.event import listen
from sqlalchemy.ext.asyncio import AsyncSession

NAMESPACE = UUID("bcf1f1f2-1548-4b07-b967-7e4124678363")


class RepeatableAction(TriggeredAction):
    """An action with the same id each time the same events cause it."""

    def model_post_init(self, context: Any) -> None:
        """Derive the id from the events."""
        super().model_post_init(context)
        if self.firing and (id_ := _id(self.firing, self.action_index)):
            self.id = id_


def _id(firing: Firing, part: object) -> UUID | None:
    """Return the id of a part of what the firing causes; None if it is to be new each time."""
    events = _events(firing)
    return uuid5(NAMESPACE, f"{firing.trigger.automation.id} {part} {events}") if events else None


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


COUNTED = 10_000
"""Number of evaluations that are known."""

_counted: dict[tuple[UUID, UUID], None] = {}


def recognize() -> None:
    """Give the actions of this process, and the events about their automations, such ids.

    Call it after others have replaced the evaluation: it holds for what they have made of it.
    """
    setattr(triggers, "TriggeredAction", RepeatableAction)  # noqa: B010  # an import of Prefect's
    for kind in (EventTrigger, CompositeTrigger):
        _give_ids(kind)
    _count_once()


def _count_once() -> None:
    prefects = triggers.evaluate

    @wraps(prefects)
    async def evaluate(
        session: AsyncSession,
        trigger: EventTrigger,
        bucket: Any,
        now: DateTime,
        triggering_event: ReceivedEvent | None,
    ) -> Any:
        if triggering_event is None:
            return await prefects(session, trigger, bucket, now, triggering_event)
        key = (triggering_event.id, trigger.id)
        if key in _counted:
            return bucket
        evaluated = await prefects(session, trigger, bucket, now, triggering_event)

        def note(_: object) -> None:
            _counted[key] = None
            if len(_counted) > COUNTED:
                del _counted[next(iter(_counted))]

        # Not if it failed: Prefect commits then, too.
        listen(session.sync_session, "after_commit", note, once=True)
        return evaluated

    triggers.evaluate = evaluate


def _give_ids(kind: type[Any]) -> None:
    prefects = kind.create_automation_state_change_event

    @wraps(prefects)
    def create(self: Any, firing: Firing, trigger_state: TriggerState) -> ReceivedEvent:
        event: ReceivedEvent = prefects(self, firing, trigger_state)
        event.id = _id(firing, trigger_state.value) or event.id
        return event

    kind.create_automation_state_change_event = create
