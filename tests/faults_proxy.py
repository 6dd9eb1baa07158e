"""An HTTP proxy in front of a real server, whose faults a test chooses.

    with FaultProxy(prefect_server.port) as proxy:
        fault = proxy.add(answer(500), "GET /api/flow_runs/", times=2)
        … a client that uses proxy.url …
        fault.wait_until_met(2)
        proxy.heal()

Each request takes a connection of its own, so a fault meets requests, not connections. WebSockets
pass through.
"""

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from tests.services import free_port

T = TypeVar("T")

SECONDS = 120
"""For how long a test waits for a request at most."""


class Request(NamedTuple):
    """A request of a client, with its connection and the way to the real server."""

    line: str
    """Method and path, as in `GET /api/health`."""
    raw: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    proxy: "FaultProxy"


Action = Callable[[Request, "Fault"], Awaitable[None]]


class Fault:
    """What happens to the next `times` requests whose line the pattern matches; None is all."""

    def __init__(self, action: Action, pattern: str, times: int | None) -> None:
        self.action = action
        self.ended = asyncio.Event()
        self._pattern = re.compile(pattern)
        self._times = times
        self._met: list[str] = []
        self._changed = threading.Condition()

    def meets(self, line: str) -> bool:
        with self._changed:
            spent = self._times is not None and len(self._met) >= self._times
            if spent or self.ended.is_set() or not self._pattern.match(line):
                return False
            self._met.append(line)
            self._changed.notify_all()
            return True

    @property
    def met(self) -> list[str]:
        """The lines of the requests that it met."""
        with self._changed:
            return list(self._met)

    def wait_until_met(self, times: int = 1) -> None:
        with self._changed:
            waited = self._changed.wait_for(lambda: len(self._met) >= times, SECONDS)
            assert waited, f"met {len(self._met)} requests of {times}"


def answer(status: int, **headers: str) -> Action:
    """Answer the status instead of the server; a header's `_` is a `-`."""

    async def act(request: Request, fault: Fault) -> None:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = [f"HTTP/1.1 {status} Fault", "Content-Length: 0", "Connection: close", *lines]
        request.writer.write("\r\n".join([*head, "", ""]).encode())
        await request.writer.drain()

    return act


async def pass_on(request: Request, fault: Fault) -> None:
    """Let the request through to the server, where an older fault would meet it."""
    await request.proxy.forward(request)


async def reset(request: Request, fault: Fault) -> None:
    """Reset the connection instead of an answer."""
    _reset(request)


async def hang(request: Request, fault: Fault) -> None:
    """Never answer; when the fault ends, the connection does."""
    await fault.ended.wait()


async def hold(request: Request, fault: Fault) -> None:
    """Bring the request to the server when the fault ends, however late, and then its answer."""
    await fault.ended.wait()
    await request.proxy.forward(request)


async def lose_answer(request: Request, fault: Fault) -> None:
    """Bring the request to the server, which acts on it, and reset the connection."""
    await request.proxy.forward(request, with_answer=False)
    _reset(request)


def _reset(request: Request) -> None:
    client: socket.socket = request.writer.get_extra_info("socket")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.writer.transport.abort()


class FaultProxy:
    """Listens on a free port of 127.0.0.1 within its block; faults are added, ended and healed."""

    def __init__(self, server_port: int) -> None:
        self.port = free_port()
        self._server_port = server_port
        self._faults: list[Fault] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._listening: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.accept()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.heal()
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, action: Action, pattern: str = "", times: int | None = None) -> Fault:
        """From now on requests meet the fault, the latest added first."""
        fault = Fault(action, pattern, times)
        self._faults.insert(0, fault)
        return fault

    def end(self, fault: Fault) -> None:
        """End a fault: held requests go on, and others meet it no more."""
        self._loop.call_soon_threadsafe(fault.ended.set)

    def heal(self) -> None:
        """End all faults."""
        for fault in self._faults:
            self.end(fault)

    def refuse(self) -> None:
        """Refuse connections, and close those that there are, as where nothing listens."""
        if self._listening is not None:
            listening, self._listening = self._listening, None
            self._loop.call_soon_threadsafe(listening.close)
            self._run(self._close_all())

    def accept(self) -> None:
        """Listen (again)."""
        if self._listening is None:
            self._listening = self._run(
                asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**24)
            )

    async def forward(self, request: Request, with_answer: bool = True) -> None:
        """Send a request to the server, and what the server says to the client, to both ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        writer.write(request.raw)
        try:
            if with_answer:
                up = asyncio.create_task(_pipe(request.reader, writer))
                await _pipe(reader, request.writer)
                up.cancel()
            else:
                await reader.read()
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                request = await self._read(reader, writer)
                fault = next((each for each in self._faults if each.meets(request.line)), None)
                await (fault.action(request, fault) if fault else self.forward(request))
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = re.search(r"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1]) if length else 0)
        if not re.search(r"\r\nupgrade:", head, re.IGNORECASE):
            head = re.sub(r"\r\nconnection:[^\r]*", "", head, flags=re.IGNORECASE)
            head = head.replace("\r\n", "\r\nConnection: close\r\n", 1)
        line = head.split(" HTTP/", 1)[0]
        return Request(line, head.encode("latin-1") + body, reader, writer, self)

    async def _close_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result(SECONDS)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while chunk := await reader.read(2**16):
            writer.write(chunk)
            await writer.drain()
