"""Start the server: `prefect server start` for the application of this package."""

import argparse
import gc
import logging

import uvicorn
from prefect.settings import get_current_settings


def main() -> None:
    """Serve until a signal. Everything else comes from Prefect's settings."""
    server = get_current_settings().server
    parser = argparse.ArgumentParser(prog="prefect_hamilton.server", description=__doc__)
    parser.add_argument(
        "--host", default=server.api.host, help='"" is every address, of IPv4 and of IPv6'
    )
    parser.add_argument("--port", type=int, default=server.api.port)
    parser.add_argument("--no-services", action="store_true", help="only the API and the UI")
    arguments = parser.parse_args()
    application = create_app(webserver_only=arguments.no_services)
    gc.freeze()
    gc.enable()
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


if __name__ == "__main__":
    # The objects of Prefect's modules are permanent: garbage collection would only take time.
    gc.disable()
    from prefect_hamilton.server.app import create_app

    main()
