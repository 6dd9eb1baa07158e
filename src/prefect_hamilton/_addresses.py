"""Where programs listen."""

import socket

EVERY_ADDRESS = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104
"""Every address, of IPv6 and of IPv4."""
