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

from prefect_hamilton.bootstrap.alerts import PREFIX, TEST_AUTOMATION, TEST_EVENT
from prefect_hamilton.bootstrap.connection import connect
from prefect_hamilton.bootstrap.created import SLUG, Created
from prefect_hamilton.bootstrap.errors import BootstrapError
from prefect_hamilton.bootstrap.objects import AUTOMATION, Automations, Found
from prefect_hamilton.masking import mask

EXECUTED, FAILED = "prefect.automation.action.executed", "prefect.automation.action.failed"

KEY = f"{AUTOMATION} {TEST_AUTOMATION}"
"""What the record of a release calls the automation."""

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


async def send(timeout: float, release: str | None = None) -> list[Outcome]:
    """Send the messages through the server at PREFECT_API_URL, and wait for what became of them.

    `timeout` is in seconds. `release` names the record of the release whose channels are meant.
    Raises BootstrapError if there are no alerts, or if several releases have some and none is
    named.
    """
    async with connect(timeout) as client:
        automation = await _automation(client, release)
        channels = [name async for name in _channels(client, automation)]
        event = uuid4()
        await _emit(client, event, automation.fields["trigger"]["match"])
        answers: dict[int, dict[str, Any]] = {}
        with anyio.move_on_after(timeout):
            while len(answers) < len(channels):
                await anyio.sleep(POLL_SECONDS)
                answers = await _answers(client, event, automation.id)
    return list(_outcomes(channels, answers, timeout))


async def _automation(client: PrefectClient, release: str | None) -> Found:
    """Return the automation that sends the messages of the release, or of the only one."""
    kind = Automations(client)
    if release is None:
        found = await kind.named(TEST_AUTOMATION)
        if len(found) > 1:
            names = ", ".join(sorted([name async for name in _releases(client)]))
            raise BootstrapError(
                f"Several releases have alerts on this server: name one with --release: {names}."
            )
    else:
        entry = (await Created.load(client, release)).get(KEY)
        recorded = await kind.find_recorded(TEST_AUTOMATION, entry.id) if entry else None
        found = [recorded] if recorded else []
    if not found:
        who = f"The release {release}" if release else "The server"
        raise BootstrapError(
            f"{who} has no alerts: add a channel to the section alerts, and apply it."
        )
    return found[0]


async def _releases(client: PrefectClient) -> AsyncIterator[str]:
    """Yield the names of the releases with alerts."""
    for document in await client.read_block_documents_by_type(SLUG):
        if KEY in (document.data.get("objects") or {}):
            yield document.data["release"]


async def _channels(client: PrefectClient, automation: Found) -> AsyncIterator[str]:
    """Yield the names of the channels in the order of the actions."""
    for action in automation.fields["actions"]:
        if action["type"] == "send-notification":
            block = await client.read_block_document(action["block_document_id"])
            yield (block.name or "").removeprefix(PREFIX)


async def _emit(client: PrefectClient, event: UUID, labels: dict[str, str]) -> None:
    """Send the event of a test, with the labels by which an automation knows it."""
    content = {
        "id": str(event),
        "occurred": datetime.now(UTC).isoformat(),
        "event": TEST_EVENT,
        "resource": {"prefect.resource.id": f"{TEST_EVENT}.{event}", **labels},
    }
    response = await client.request("POST", "/events", json=[content])
    response.raise_for_status()


async def _answers(
    client: PrefectClient, event: UUID, automation: UUID
) -> dict[int, dict[str, Any]]:
    """Return the outcome of each action of the automation so far, by its position."""
    query: Any = {
        "event": {"name": [EXECUTED, FAILED]},
        "resource": {"id": [f"prefect.automation.{automation}"]},
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
