"""`prefect-hamilton`: the commands behind make, with complete `--help`."""

import subprocess
import sys
from typing import Annotated

import typer

from charts.schema import generate as values
from scripts import chart_images, demo, kind, local, render, screenshots

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def main() -> None:
    """Run Prefect flows with Hamilton dataflows on this machine, or on a kind cluster."""


@app.command()
def generate(
    check: Annotated[bool, typer.Option(help="Write nothing; say what is out of date.")] = False,
) -> None:
    """Generate values.yaml, its schema, the table of values and kustomize/base."""
    values.main(check)
    render.main(check=check)


alerts = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True)


@alerts.callback()
def alerts_main() -> None:
    """Alerts that the server sends."""


@alerts.command("test")
def alerts_test(
    release: Annotated[
        str, typer.Option(help="The release, if several have alerts on the server.")
    ] = "",
) -> None:
    """Let the server at PREFECT_API_URL send one message through each channel of its alerts."""
    command = [sys.executable, "-m", "prefect_hamilton.bootstrap", "alerts", "test"]
    command += ["--release", release] if release else []
    raise typer.Exit(subprocess.run(command, check=False).returncode)


app.add_typer(alerts, name="alerts")
app.registered_commands.extend(local.app.registered_commands)
app.command("demo")(demo.main)
app.add_typer(kind.app, name="kind")
app.command("images")(chart_images.main)
app.command("render")(render.main)
app.command("screenshots")(screenshots.main)

if __name__ == "__main__":
    app(prog_name="prefect-hamilton")
