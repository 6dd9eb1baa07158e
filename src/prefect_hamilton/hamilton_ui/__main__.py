"""Commands of the Hamilton UI's image: serve (the default), migrate, prune."""

import logging
import os
from datetime import timedelta
from typing import Annotated

import django
import typer
from django.db import OperationalError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
logger = logging.getLogger("prefect_hamilton.hamilton_ui")

WaitSeconds = Annotated[
    float, typer.Option(min=0, help="How long to wait for the database to accept connections.")
]


def connect(wait_seconds: float) -> None:
    """Set Django up and wait for the database; exits 1 with the reason if it stays away."""
    from prefect_hamilton.hamilton_ui import database

    try:
        database.wait(wait_seconds)
    except OperationalError as error:
        where = f"{os.environ['DB_HOST']}:{os.environ['DB_PORT']}/{os.environ['DB_NAME']}"
        reason = " ".join(str(error).split())
        logger.error("the database %s cannot be reached: %s", where, reason)
        raise typer.Exit(1) from None


@app.command()
def serve() -> None:
    """Serve the UI and the API on PORT (8241) with gunicorn."""
    from prefect_hamilton.hamilton_ui import serving

    serving.serve()


@app.command()
def migrate(wait_seconds: WaitSeconds = 300) -> None:
    """Migrate the database to this version's schema; several processes may do so at once."""
    connect(wait_seconds)
    from prefect_hamilton.hamilton_ui import database

    database.migrate()


@app.command()
def prune(
    keep_days: Annotated[
        float, typer.Option(min=0, help="Delete runs that started more days ago; 0 deletes none.")
    ] = 90,
    stale_hours: Annotated[
        float,
        typer.Option(
            min=0,
            help="Mark runs as failed after this number of hours without an update; 0 marks none.",
        ),
    ] = 24,
    wait_seconds: WaitSeconds = 60,
) -> None:
    """Delete old runs, and mark runs whose process has ended as failed."""
    connect(wait_seconds)
    from prefect_hamilton.hamilton_ui import database

    if stale_hours:
        ended = database.end_stale_runs(timedelta(hours=stale_hours))
        logger.info("marked %d stale runs as failed", ended)
    if keep_days:
        deleted = database.delete_runs(timedelta(days=keep_days))
        logger.info("deleted %d old runs", deleted)


if __name__ == "__main__":
    django.setup()
    app()
