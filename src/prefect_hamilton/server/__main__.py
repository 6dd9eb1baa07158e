"""Start the server: `prefect server start` for the application of this package."""

import argparse
import asyncio
import gc
import logging
import multiprocessing
import sys

import uvicorn
from prefect.settings import get_current_settings

from prefect_hamilton.logs import lines


def main() -> None:
    """Serve until a signal. Everything else comes from Prefect's settings."""
    server = get_current_settings().server
    parser = argparse.ArgumentParser(prog="prefect_hamilton.server", description=__doc__)
    parser.add_argument(
        "--host", default=server.api.host, help='"" is every address, of IPv4 and of IPv6'
    )
    parser.add_argument("--port", type=int, default=server.api.port)
    parser.add_argument("--no-services", action="store_true", help="only the API and the UI")
    parser.add_argument(
        "--migrate", action="store_true", help="migrate the database first; only for PostgreSQL"
    )
    arguments = parser.parse_args()
    application = create_app(webserver_only=arguments.no_services)
    gc.freeze()
    gc.enable()
    if arguments.migrate:
        migrate_first()
    uvicorn.run(
        application,
        host=arguments.host,
        port=arguments.port,
        timeout_keep_alive=server.api.keepalive_timeout,
        ws_ping_interval=server.api.websocket_ping_interval,
        ws_ping_timeout=server.api.websocket_ping_timeout,
        # Uvicorn's loggers are in Prefect's configuration, with the same format.
        log_config=None,
        # At DEBUG, Uvicorn would log the frames of WebSockets, and the first has the credential.
        log_level=max(logging.getLevelNamesMapping()[server.logging_level.upper()], logging.INFO),
    )


def migrate_first() -> None:
    """Migrate the database in a child process; exits with status 1 if that fails.

    The child is forked, so that nothing is imported twice: no thread has been started yet. Its
    memory, its connections and its lock end with it.
    """
    child = multiprocessing.get_context("fork").Process(target=_migrate)
    child.start()
    child.join()
    if child.exitcode:
        with lines("prefect_hamilton.server"):
            sys.exit("The server does not start, because its database was not migrated.")


def _migrate() -> None:
    from prefect_hamilton.server.migrate import LOCK_SECONDS, migrate

    with lines("prefect_hamilton.server.migrate"):
        asyncio.run(migrate(LOCK_SECONDS))


if __name__ == "__main__":
    # The objects of Prefect's modules are permanent: garbage collection would only take time.
    gc.disable()
    from prefect_hamilton.server.app import create_app

    main()
