"""What a background service had taken when its connection broke is done again after a minute.

Docket, which runs Prefect's background services, gives a task to another worker when the one that
took it has not been heard of for five minutes. After Valkey was restarted, the services that ran at
that moment, the scheduler among them, stood still as long. Prefect has no setting for it.
"""

from datetime import timedelta
from functools import partial

from docket import Worker
from prefect.server.api import background_workers

TIMEOUT = timedelta(seconds=60)
"""A worker says four times in it that it is still at work."""


def shorten() -> None:
    """Let the workers that Prefect starts in this process use the timeout."""
    setattr(background_workers, "Worker", partial(Worker, redelivery_timeout=TIMEOUT))  # noqa: B010  # an import of Prefect's
