"""Send a message through each channel of the alerts, as the server itself sends them.

An event makes the server run the automation `alert-test`, so that the message leaves from the pod
that sends all others, past its NetworkPolicy and proxy, and with the secrets that the server has.
"""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import anyio
from prefect.client.orchestration import PrefectClient
from prefect.events.actions import SendNotification

from prefect_hamilton.bootstrap.alerts import PREFIX, TEST_AUTOMATION, TEST_EVENT
from prefect_hamilton.bootstrap.connection import connect
from prefect_hamilton.bootstrap.errors import BootstrapError
from prefect_hamilton.masking import mask

EXECUTED, FAILED = "prefect.automation.action.executed", "prefect.automation.action.failed"

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """Whether the receiver of a channel has taken the message; `reason` is why not."""

    channel: str
    arrived: bool
    reason: str = ""

    def line(self) -> str:
        """Return the outcome as a line of a report."""
        if self.arrived:
            return f"arrived  {self.channel}"
        return f"FAILED   {self.channel}: {self.reason}"


async def send(timeout: float) -> list[Outcome]:
    """Send the messages through the server at PREFECT_API_URL, and wait for what became of them.

    `timeout` is in seconds. Raises BootstrapError if there are no alerts.
    """
    async with connect(timeout) as client:
        channels = [name async for name in _channels(client)]
        event = uuid4()
        await _emit(client, event)
        answers: dict[int, dict[str, Any]] = {}
        with anyio.move_on_after(timeout):
            while len(answers) < len(channels):
                await anyio.sleep(POLL_SECONDS)
                answers = await _answers(client, event)
    return list(_outcomes(channels, answers, timeout))


async def _channels(client: PrefectClient) -> AsyncIterator[str]:
    """Yield the names of the channels in the order of the actions."""
    found = await client.read_automations_by_name(TEST_AUTOMATION)
    if not found:
        raise BootstrapError(
            "The server has no alerts: add a channel to the section alerts, and apply it."
        )
    for action in found[0].actions:
        if isinstance(action, SendNotification):
            block = await client.read_block_document(action.block_document_id)
            yield (block.name or "").removeprefix(PREFIX)


async def _emit(client: PrefectClient, event: UUID) -> None:
    content = {
        "id": str(event),
        "occurred": datetime.now(UTC).isoformat(),
        "event": TEST_EVENT,
        "resource": {"prefect.resource.id": f"{TEST_EVENT}.{event}"},
    }
    response = await client.request("POST", "/events", json=[content])
    response.raise_for_status()


async def _answers(client: PrefectClient, event: UUID) -> dict[int, dict[str, Any]]:
    """Return the outcome of each action so far, by its position."""
    query: Any = {
        "event": {"name": [EXECUTED, FAILED]},
        "related": {"id": [f"prefect.event.{event}"]},
    }
    response = await client.request("POST", "/events/filter", json={"filter": query, "limit": 50})
    events = response.raise_for_status().json()["events"]
    return {each["payload"]["action_index"]: each for each in events}


def _outcomes(
    channels: Iterable[str], answers: dict[int, dict[str, Any]], timeout: float
) -> Iterable[Outcome]:
    for index, channel in enumerate(channels):
        answer = answers.get(index)
        if answer is None:
            reason = (
                f"the server has not sent it within {timeout:g} seconds: do its background "
                "services run, and does its network let the message out?"
            )
            yield Outcome(channel, arrived=False, reason=reason)
        else:
            payload = answer["payload"]
            words = [payload.get("reason", ""), payload.get("notification_log") or ""]
            reason = mask(": ".join(" ".join(word.split()) for word in words if word.strip()))
            yield Outcome(channel, answer["event"] == EXECUTED, reason[:300])
