"""Whether the background services of this pod are alive: they leave a heartbeat in Valkey."""

import os
import socket
import sys
import time

import redis

MAX_AGE_SECONDS = 60


def main() -> None:
    """Exit 0 when a worker of this host has left a heartbeat lately."""
    server = redis.from_url(os.environ["PREFECT_SERVER_DOCKET_URL"], socket_timeout=5)
    try:
        alive = server.zrangebyscore("prefect:workers", time.time() - MAX_AGE_SECONDS, "+inf")
    except redis.RedisError as error:
        sys.exit(f"Valkey does not answer: {error}")
    host = socket.gethostname()
    if not any(name.decode().split("#")[0] == host for name in alive):
        sys.exit(f"No heartbeat of {host} in the last {MAX_AGE_SECONDS} s.")


if __name__ == "__main__":
    main()
