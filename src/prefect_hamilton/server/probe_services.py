"""Whether the background services of this pod are alive: they leave a heartbeat in Valkey.

Prefect does not document the key and the form of the heartbeats. If they differ from those of
Prefect 3.9.1, or before the first heartbeat, the pod is assumed to be alive.
"""

import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import cast

import redis

WORKERS = "prefect:workers"
"""The sorted set with the time of each worker's last heartbeat; they are named `host#pid`."""
MAX_AGE_SECONDS = 60


def main() -> None:
    """Exit 0 unless the heartbeats show that no worker of this host is alive."""
    server = redis.from_url(os.environ["PREFECT_SERVER_DOCKET_URL"], socket_timeout=5)
    try:
        found = server.zrange(WORKERS, 0, -1, withscores=True)
    except redis.ResponseError as error:
        print(f"Assumed alive: {WORKERS} has another form ({error}).")
        return
    except redis.RedisError as error:
        sys.exit(f"Valkey does not answer: {error}")
    # The client is annotated with every form that some command answers in.
    rows = cast(Sequence[tuple[bytes, float]], found)
    heartbeats = {name.decode(errors="replace"): seconds for name, seconds in rows}
    alive, reason = judge(heartbeats, socket.gethostname(), time.time())
    if not alive:
        sys.exit(reason)
    if reason:
        print(reason)


def judge(heartbeats: Mapping[str, float], host: str, now: float) -> tuple[bool, str]:
    """Return whether the host is alive, and why, from the time of each worker's heartbeat."""
    known = {name: seconds for name, seconds in heartbeats.items() if "#" in name}
    if not known:
        return True, f"Assumed alive: {WORKERS} contains no heartbeat of the form host#pid."
    newest = max((at for name, at in known.items() if name.split("#")[0] == host), default=0.0)
    if newest < now - MAX_AGE_SECONDS:
        return False, f"No heartbeat of {host} in the last {MAX_AGE_SECONDS} s."
    return True, ""


if __name__ == "__main__":
    main()
