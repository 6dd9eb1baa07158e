"""A notification that a receiver refuses is a failed action, as it is for every other block.

With Prefect's own action, an error of the block `custom-webhook` leaves no event, and the message
is sent four times at once, also to a receiver that has taken it and answered too late.
"""

import httpx
from prefect.server.events.actions import ActionFailed, SendNotification
from prefect.server.events.schemas.automations import TriggeredAction

_act = SendNotification.act


async def act(self: SendNotification, triggered_action: TriggeredAction) -> None:
    """Send the notification. Raises ActionFailed, whose reason has no address: it may be secret."""
    try:
        await _act(self, triggered_action)
    except httpx.HTTPStatusError as error:
        raise ActionFailed(f"The receiver answered {error.response.status_code}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ActionFailed(f"The receiver cannot be reached ({type(error).__name__})") from None


def report_failures() -> None:
    """Use `act` in this process."""
    SendNotification.act = act  # type: ignore[method-assign]
