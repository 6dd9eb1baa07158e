"""A notification is sent once, a refused one is a failed action, and a state's message is masked.

With Prefect's own action, an error of the block `custom-webhook` leaves no event, and the message
is sent again, also to a receiver that has taken it and answered too late. The message of a failed
run, which a template may name, is the text of an exception, with whatever is in it.
"""

import asyncio
from typing import Any

import httpx
from prefect.server.events.actions import ActionFailed, SendNotification
from prefect.server.events.schemas.automations import TriggeredAction
from prefect.server.utilities.schemas import PrefectBaseModel

from prefect_hamilton.masking import mask

ANSWER_SECONDS = 12.0
"""Time that a receiver has. Where replicas share the actions, another one would repeat it later."""

_act = SendNotification.act
_instantiate_object = SendNotification.instantiate_object


async def act(self: SendNotification, triggered_action: TriggeredAction) -> None:
    """Send the notification. Raises ActionFailed, whose reason has no address: it may be secret."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await _act(self, triggered_action)
    except httpx.HTTPStatusError as error:
        raise ActionFailed(f"The receiver answered {error.response.status_code}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ActionFailed(f"The receiver cannot be reached ({type(error).__name__})") from None
    except TimeoutError:
        raise ActionFailed(
            f"The receiver did not answer within {ANSWER_SECONDS:.0f} seconds"
        ) from None


def instantiate_object(self: SendNotification, *args: Any, **kwargs: Any) -> PrefectBaseModel:
    """Return what a template names; of a run, the state's message is masked."""
    found = _instantiate_object(self, *args, **kwargs)
    state = getattr(found, "state", None)
    if state and state.message:
        state.message = mask(state.message)
    return found


def correct() -> None:
    """Use `act` and `instantiate_object` in this process."""
    SendNotification.act = act  # type: ignore[method-assign]
    SendNotification.instantiate_object = instantiate_object  # type: ignore[assignment,method-assign]
