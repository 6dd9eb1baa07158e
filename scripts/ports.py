"""Ports of this machine."""

import socket

from scripts.local_profile import HOST


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing uses."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
