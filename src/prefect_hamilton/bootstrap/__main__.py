"""Bring the servers to the desired state, and register the deployments of a repository."""

import asyncio
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from prefect_hamilton.bootstrap import desired_state
from prefect_hamilton.bootstrap.apply import Change, apply
from prefect_hamilton.bootstrap.errors import BootstrapError
from prefect_hamilton.bootstrap.record import Record
from prefect_hamilton.bootstrap.register_deployments import register

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def main() -> None:
    """Bring a Prefect server and a Hamilton UI to the desired state."""


@app.command("apply")
def apply_command(
    file: Annotated[
        Path, typer.Option(help="The desired state (YAML).", show_default="the package's")
    ] = desired_state.FILE,
    add: Annotated[
        list[Path] | None,
        typer.Option(help="A file that adds to it; its entries replace those of the same name."),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="A file of what was written last: what people changed since is kept."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for each server to answer.", min=0)
    ] = 60.0,
) -> None:
    """Apply the desired state. Applying it again changes nothing.

    The Prefect server is the one at PREFECT_API_URL (with PREFECT_API_AUTH_STRING if it requires a
    password), the Hamilton UI the one at HAMILTON_API_URL (with HAMILTON_API_KEY).
    """

    def report(change: Change) -> None:
        typer.echo(f"  {change.line()}")

    try:
        state = desired_state.load([file, *(add or [])])
        written = Record(record) if record else None
        asyncio.run(apply(state, timeout=timeout, report=report, record=written))
    except BootstrapError as error:
        fail(error)


@app.command("register")
def register_command(
    names: Annotated[
        list[str], typer.Argument(help="Deployments of its prefect.yaml: names or patterns.")
    ],
) -> None:
    """Clone FLOWS_REPOSITORY at FLOWS_REF, apply its prefect-state.yaml, register its deployments.

    GIT_ACCESS_TOKEN is the token for a private repository.
    """
    try:
        code = register(names)
    except BootstrapError as error:
        fail(error)
    raise typer.Exit(code)


def fail(error: BootstrapError) -> NoReturn:
    """Print the error and exit with status 1."""
    typer.secho(f"bootstrap: {error}", fg=typer.colors.RED, err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m prefect_hamilton.bootstrap")
