"""Windows of proactive triggers, such as those of the alerts `late` and `pending`.

An `after` event opens a window of `within` seconds. If an expected event comes, Prefect keeps the
window until it next looks for windows that are over. An `after` event that comes meanwhile opens no
other one: a run that is late after another one has started would never be reported.

If an expected event comes after the end of the window and before Prefect has looked, Prefect sends
the message about that event: it would name the run that has started, not the one that is late.
"""

from datetime import datetime
from typing import Any

from prefect.server.events import triggers
from prefect.server.events.schemas.automations import EventTrigger, Posture
from prefect.server.events.schemas.events import ReceivedEvent

_ensure_bucket: Any = triggers.ensure_bucket
_evaluate: Any = triggers.evaluate
_remove_bucket: Any = triggers.remove_bucket


async def ensure_bucket(
    session: Any, trigger: EventTrigger, bucketing_key: tuple[str, ...], **window: Any
) -> Any:
    """Return the window of an event; a new one if an older one has had its expected events."""
    bucket = await _ensure_bucket(session, trigger, bucketing_key, **window)
    if (
        _opens_windows(trigger)
        and bucket.count >= trigger.threshold
        and bucket.start < window["start"]
    ):
        await _remove_bucket(session, bucket)
        # It counts the expected events that have come since the start.
        bucket = await _ensure_bucket(session, trigger, bucketing_key, **window)
    return bucket


async def evaluate(
    session: Any,
    trigger: EventTrigger,
    bucket: Any,
    now: datetime,
    triggering_event: ReceivedEvent | None,
) -> Any:
    """Evaluate a window; an event after its end does not become that of the message."""
    is_over = _opens_windows(trigger) and bucket.end <= now
    return await _evaluate(session, trigger, bucket, now, None if is_over else triggering_event)


def _opens_windows(trigger: EventTrigger) -> bool:
    return trigger.posture is Posture.Proactive and bool(trigger.after)


def replace_windows() -> None:
    """Use both in this process."""
    triggers.ensure_bucket = ensure_bucket
    triggers.evaluate = evaluate
