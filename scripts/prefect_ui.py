"""Serve the Prefect UI without the API: `python -m scripts.prefect_ui --port 4200`.

For the local profile with `--api-port`: the UI on one port, the API on another. The UI learns
the API's address from `PREFECT_UI_API_URL`. Unlike a second `prefect server start`, this opens no
database and offers no second API, whose events the first would not see.
"""

from typing import Annotated

import typer
import uvicorn
from prefect.server.api.server import create_ui_app

HOST = "127.0.0.1"


def main(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 4200,
) -> None:
    """Serve the Prefect UI on 127.0.0.1 until SIGTERM or Ctrl-C."""
    uvicorn.run(create_ui_app(ephemeral=False), host=HOST, port=port, log_level="warning")


if __name__ == "__main__":
    typer.run(main)
