"""`prefect-hamilton`: the commands behind make, with complete `--help`."""

import typer

from scripts import chart_images, demo, kind, local, render, screenshots

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def main() -> None:
    """Run Prefect flows with Hamilton dataflows on this machine, or on a kind cluster."""


app.registered_commands.extend(local.app.registered_commands)
app.command("demo")(demo.main)
app.add_typer(kind.app, name="kind")
app.command("images")(chart_images.main)
app.command("render")(render.main)
app.command("screenshots")(screenshots.main)

if __name__ == "__main__":
    app(prog_name="prefect-hamilton")
