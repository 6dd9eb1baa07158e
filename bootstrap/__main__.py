"""`python -m bootstrap apply`: bring the servers to the state that the files describe."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from bootstrap import desired_state
from bootstrap.apply import Change, apply
from bootstrap.errors import BootstrapError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def main() -> None:
    """Bring a Prefect server and a Hamilton UI to the state that files describe."""


@app.command("apply")
def apply_command(
    file: Annotated[Path, typer.Option(help="The desired state (YAML).")] = Path(
        "bootstrap/desired-state.yaml"
    ),
    add: Annotated[
        list[Path] | None,
        typer.Option(help="A file that adds to it; its entries replace those of the same name."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for each server to answer.", min=0)
    ] = 60.0,
) -> None:
    """Apply; a second time changes nothing.

    The Prefect server is the one at PREFECT_API_URL (with PREFECT_API_AUTH_STRING when it wants a
    password), the Hamilton UI the one at HAMILTON_API_URL (with HAMILTON_API_KEY).
    """

    def report(change: Change) -> None:
        typer.echo(f"  {change.line()}")

    try:
        state = desired_state.load([file, *(add or [])])
        asyncio.run(apply(state, timeout=timeout, report=report))
    except BootstrapError as error:
        typer.secho(f"bootstrap: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app(prog_name="python -m bootstrap")
