"""Serve the Hamilton UI on this machine: `python -m scripts.hamilton_ui --port 8241 --state DIR`.

The package's own `hamilton ui` is Django's development server in debug mode, with a secret key that
everybody knows, on every network address. This serves the same application with gunicorn, on
127.0.0.1 only, with its data (SQLite, source code of the DAG versions) in the state folder.

Anyone who can connect to the port has full access under any user name, unless
`HAMILTON_PERMISSIVE_MODE_GLOBAL_KEY` is set: then only with that key.
"""

import importlib.util
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

HOST = "127.0.0.1"


class CannotServeError(Exception):
    """The Hamilton UI cannot be served; the message names the cause and the fix."""


def package_folder() -> Path:
    """Folder of the installed `hamilton_ui`, which holds Django's top-level modules."""
    spec = importlib.util.find_spec("hamilton_ui")
    if spec is None or not spec.submodule_search_locations:
        raise CannotServeError(
            "apache-hamilton-ui is not installed: run uv sync --group hamilton-ui"
        )
    return Path(spec.submodule_search_locations[0])


def bind(port: int) -> socket.socket:
    """Bind HOST:`port`; no other process can use the port from now on."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        # Two sockets may share a bound address until one of them listens.
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        raise CannotServeError(
            f"port {port} on {HOST} cannot be used ({error.strerror}): "
            "stop the process that uses it, or choose another port with --port"
        ) from error
    return listener


def secret_key(state: Path) -> str:
    """Django's secret key, made once per state folder and readable by its owner only."""
    path = state / "secret-key"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text()
    with os.fdopen(descriptor, "w") as file:
        key = secrets.token_urlsafe(50)
        file.write(key)
    return key


def configure(state: Path) -> None:
    """Set the environment in which Django and gunicorn serve the data in `state`."""
    from prefect_hamilton.hamilton_ui import ui_files

    package = package_folder()
    sys.path.insert(0, str(package))
    ui_files.prepare(package / "build", state / "page")
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "prefect_hamilton.hamilton_ui.settings_local",
        "DJANGO_SECRET_KEY": secret_key(state),
        "HAMILTON_BASE_DIR": str(state),
    }


def migrate() -> None:
    """Migrate the database to the schema of the package."""
    import django
    from django.core.management import call_command
    from django.db import DatabaseError

    django.setup()
    try:
        call_command("migrate", interactive=False, verbosity=0)
    except DatabaseError as error:
        database = django.db.connection.settings_dict["NAME"]
        raise CannotServeError(f"the database {database} cannot be used: {error}") from error


def main(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 8241,
    state: Annotated[
        Path, typer.Option(file_okay=False, help="Folder of the database and the secret key.")
    ] = Path(".state/hamilton-ui"),
) -> None:
    """Serve the Hamilton UI on 127.0.0.1 until SIGTERM or Ctrl-C."""
    try:
        listener = bind(port)
        try:
            state = state.absolute()
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            configure(state)
            # One worker: SQLite has one writer at a time anyway. `make down` waits for 8 seconds.
            options = f"--bind fd://{listener.fileno()} --workers 1 --graceful-timeout 5"
            os.environ["GUNICORN_CMD_ARGS"] = options
            migrate()
        except OSError as error:
            raise CannotServeError(f"the state folder {state} cannot be used: {error}") from error
    except CannotServeError as error:
        typer.echo(f"Hamilton UI: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"Hamilton UI on http://{HOST}:{listener.getsockname()[1]}, data in {state}")
    sys.stdout.flush()

    from prefect_hamilton.hamilton_ui import serving

    serving.serve()


if __name__ == "__main__":
    typer.run(main)
