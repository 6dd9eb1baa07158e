"""A second credential that the API accepts while the first one is being replaced.

Prefect's server knows one. A running flow pod keeps the credential that it started with, so that
replacing the only one would end its flow run.
"""

import base64
import binascii
import hmac
import json
import os

from fastapi import FastAPI
from prefect.settings import PREFECT_SERVER_API_AUTH_STRING
from starlette.types import ASGIApp, Message, Receive, Scope, Send

VARIABLE = "PREFECT_HAMILTON_SERVER_SECOND_AUTH_STRING"
"""`user:password`, as PREFECT_SERVER_API_AUTH_STRING."""


def accept(api: FastAPI) -> None:
    """Let the API accept the second credential, if there are two."""
    first = PREFECT_SERVER_API_AUTH_STRING.value()
    if first and (second := os.environ.get(VARIABLE)):
        api.add_middleware(SecondCredential, first=first, second=second)


class SecondCredential:
    """Replaces the second credential of a request or a WebSocket by the first.

    Everything behind it, which is Prefect's own check, knows the first one only.
    """

    def __init__(self, app: ASGIApp, first: str, second: str) -> None:
        self._app = app
        self._first = first
        self._second = second

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request or WebSocket (ASGI)."""
        if scope["type"] == "http":
            scope = {**scope, "headers": [self._header(*each) for each in scope["headers"]]}
        elif scope["type"] == "websocket":
            receive = self._messages(receive)
        await self._app(scope, receive, send)

    def _header(self, name: bytes, value: bytes) -> tuple[bytes, bytes]:
        if name == b"authorization" and self._is_second(_basic(value)):
            return name, b"Basic " + base64.b64encode(self._first.encode())
        return name, value

    def _messages(self, receive: Receive) -> Receive:
        is_authenticated = False

        async def first_message_has_the_token() -> Message:
            nonlocal is_authenticated
            message = await receive()
            if message["type"] == "websocket.receive" and not is_authenticated:
                is_authenticated = True
                return self._message(message)
            return message

        return first_message_has_the_token

    def _message(self, message: Message) -> Message:
        try:
            content = json.loads(message.get("text") or "")
        except ValueError:
            return message
        if isinstance(content, dict) and self._is_second(content.get("token")):
            return {**message, "text": json.dumps(content | {"token": self._first})}
        return message

    def _is_second(self, credential: object) -> bool:
        return isinstance(credential, str) and hmac.compare_digest(
            credential.encode(), self._second.encode()
        )


def _basic(value: bytes) -> str | None:
    """Return the credential in a header `Authorization: Basic …`."""
    scheme, _, encoded = value.partition(b" ")
    try:
        return base64.b64decode(encoded).decode() if scheme == b"Basic" else None
    except (binascii.Error, UnicodeDecodeError):
        return None
