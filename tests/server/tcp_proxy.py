"""A TCP proxy whose target can be away: refused, or silent."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.services import free_port


class TcpProxy:
    """Listens on `port` and forwards bytes until a fault is set."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._held = b""
        self._opening = b""
        self._passes = threading.Event()
        self._passes.set()
        self._sockets: list[socket.socket] = []
        self.listen()

    def listen(self) -> None:
        """Accept connections (again)."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def refuse(self) -> None:
        """End all connections and accept none."""
        self._passes.set()
        for open_socket in [self._listener, *self._sockets]:
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
            open_socket.close()
        self._sockets.clear()

    def hold(self, words: bytes) -> None:
        """Keep back, from now on, a request or answer that has these words."""
        self._held, self._opening = words, b""
        self._passes.clear()

    def hold_answers(self, words: bytes) -> None:
        """Keep back, from now on, what is answered on connections that began with these words."""
        self._held, self._opening = b"", words
        self._passes.clear()

    def silence(self) -> None:
        """Keep connections and accept new ones, but hand nothing on."""
        self.hold(b"")

    def speak(self) -> None:
        """Hand on what was kept back, and the rest."""
        self._passes.set()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                opening = bytearray()
                for source, sink in [(client, server), (server, client)]:
                    arguments = [source, sink, opening, sink is client]
                    threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, opening: bytearray, answers: bool
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not answers and not opening:
                    opening += data
                if self._opening:
                    is_held = answers and self._opening in opening
                else:
                    is_held = self._held in data
                if is_held:
                    self._passes.wait()
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(target: int) -> Iterator[TcpProxy]:
    """A proxy for a port of 127.0.0.1."""
    between = TcpProxy(target)
    try:
        yield between
    finally:
        between.refuse()
