"""The engine's process: prepares the workspace, waits for its supervisor, runs the flow."""

import importlib
import os
import sys
from pathlib import Path
from typing import NamedTuple

import anyio
from prefect import context, flow_engine
from prefect.runner import _workspace_supervisor
from prefect.utilities.processutils import get_sys_executable


class Prepared(NamedTuple):
    """What Prefect would now replace this process by: a command, its folder and environment."""

    command: list[str]
    folder: Path
    environment: dict[str, str]


def prepare(config_path: Path) -> Prepared | None:
    """Run the deployment's pull steps and write the manifest that the hooks need.

    This is Prefect's own `python -m prefect.runner._workspace_supervisor`, stopped before its
    last act. None if a step failed; the reason is then on stderr and in the flow run's log.
    """
    prepared: list[Prepared] = []

    async def keep(command: list[str], *, cwd: Path, environment: dict[str, str]) -> int:
        prepared.append(Prepared(command, cwd, environment))
        return 0

    _workspace_supervisor._launch_engine = keep
    anyio.run(_workspace_supervisor._main_async, [str(config_path)])
    return prepared[0] if prepared else None


def adopt(prepared: Prepared) -> None:
    """Make this process what the new one would have been: folder, environment, import path."""
    os.chdir(prepared.folder)
    settings_changed = {k: v for k, v in os.environ.items() if k.startswith("PREFECT_")} != {
        k: v for k, v in prepared.environment.items() if k.startswith("PREFECT_")
    }
    os.environ.clear()
    os.environ.update(prepared.environment)
    if settings_changed:
        context.refresh_global_settings_context()
    # As `python -m` with PYTHONPATH; entries that are there already keep their place.
    first = [str(prepared.folder), *prepared.environment["PYTHONPATH"].split(os.pathsep)]
    sys.path[:0] = [entry for entry in dict.fromkeys(first) if entry not in sys.path]
    importlib.invalidate_caches()


def run(config_path: Path, go: int) -> int:
    """Run the flow once the descriptor `go` has given the control channel as `port token`.

    Returns the exit code. If `go` ends without a word, the run was not to be started, and 0.
    """
    prepared = prepare(config_path)
    if prepared is None:
        return 1
    with os.fdopen(go, encoding="ascii") as words:
        control = words.read().split()
    if not control:
        return 0
    port, token = control
    channel = {"PREFECT__CONTROL_PORT": port, "PREFECT__CONTROL_TOKEN": token}
    if prepared.command[:3] != [get_sys_executable(), "-m", "prefect.engine"]:
        # The workspace brings its own interpreter or environment.
        os.execvpe(prepared.command[0], prepared.command, prepared.environment | channel)  # noqa: S606
    adopt(prepared)
    os.environ.update(channel)
    return flow_engine._main([prepared.environment["PREFECT__FLOW_ENTRYPOINT"]])
