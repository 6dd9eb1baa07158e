"""A message whose receiver does not answer in time is a failed action, and is not sent again."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from prefect.server.events.actions import ActionFailed, SendNotification

from prefect_hamilton.server import notifications

pytestmark = pytest.mark.anyio


async def test_a_receiver_that_does_not_answer_is_a_failed_action(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def send(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(notifications, "_act", send)
    monkeypatch.setattr(notifications, "ANSWER_SECONDS", 0.1)
    action = SendNotification(block_document_id=uuid4(), body="Late.")
    with pytest.raises(ActionFailed, match="did not answer within 0 seconds"):
        await notifications.act(action, None)  # type: ignore[arg-type]  # which `send` ignores
