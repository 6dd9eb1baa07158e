"""What a background service had taken and not done when it ended is done again, soon.

Docket, which runs Prefect's background services, gives a task to another worker when the one that
took it has not been heard of for five minutes. After Valkey was restarted, the services that ran at
that moment, the scheduler among them, stood still as long. Prefect has no setting for it.

A message of Valkey that was delivered, but not done, is delivered again. Prefect removes messages
up to the last one that each group of consumers got, also those among them that are not done.
"""

import time
from datetime import timedelta
from functools import partial

import prefect_redis.messaging
from docket import Worker
from prefect.server.api import background_workers
from prefect_redis.client import get_async_redis_client
from redis.exceptions import ResponseError

TIMEOUT = timedelta(seconds=60)
"""A worker says four times in it that it is still at work."""

KEPT = timedelta(minutes=20)
"""How long a message is kept that nobody does: longer than it is repeated.

A group of consumers that is gone for good may have it, and Valkey's memory is limited.
"""

_trim = prefect_redis.messaging._trim_stream_to_lowest_delivered_id


def shorten() -> None:
    """Let the workers that Prefect starts in this process use the timeout."""
    setattr(background_workers, "Worker", partial(Worker, redelivery_timeout=TIMEOUT))  # noqa: B010  # an import of Prefect's


def keep_messages() -> None:
    """Let this process remove no message from Valkey that was delivered and is not done."""
    setattr(prefect_redis.messaging, _trim.__name__, trim)


async def trim(stream_name: str, latest_delivered_id: str | None = None) -> None:
    """Remove the messages of a stream that all groups have done.

    `latest_delivered_id` is the last one of a consumer without a group.
    """
    oldest = [await _oldest_pending(stream_name), _milliseconds(latest_delivered_id)]
    found = [each for each in oldest if each]
    # With this end, it comes first in the order of texts, by which Prefect compares.
    await _trim(stream_name, f"{min(found)}-0" if found else None)


async def _oldest_pending(stream: str) -> int | None:
    """Return the time in ms of the oldest message that was delivered to a group and is not done."""
    client = get_async_redis_client()
    try:
        groups = await client.xinfo_groups(stream)
    except ResponseError:  # there is no such stream yet
        return None
    pending = [await client.xpending(stream, group["name"]) for group in groups if group["pending"]]
    oldest = [_milliseconds(each["min"]) for each in pending if each["min"]]
    kept = int((time.time() - KEPT.total_seconds()) * 1000)
    return max(min(oldest), kept) if oldest else None


def _milliseconds(id_: str | None) -> int:
    """Return the time in an id of a message."""
    return int(id_.partition("-")[0]) if id_ else 0
