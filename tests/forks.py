"""Programs that run in a process of their own, forked from one that has imported their packages.

Each has its own environment, output and exit code, as `python -m` gives it; only the seconds that
the imports of Prefect and Hamilton take are spent once.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

PACKAGES = [
    "flows.data_pipeline",
    "flows.dataflows.metrics_transform",
    "flows.dataflows.metrics_quality",
    "hamilton.driver",
    "hypothesis",
    "prefect.cli.deployment",
    "prefect.flow_engine",
    "prefect_hamilton.bootstrap.apply",
    "prefect_hamilton.bootstrap.record",
    "prefect_hamilton.bootstrap.register_deployments",
    "prefect_kubernetes",
    "pytest",  # as multiprocessing imports the program that starts a process
    "typer",
]
"""What the process imports; not the programs themselves, which run as `__main__`."""

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([__name__, *PACKAGES])


def run(
    module: str, *arguments: str | Path, env: Mapping[str, str], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` with this environment in a folder; returns its output and exit code.

    The folder is this process's unless given.
    """
    with tempfile.TemporaryDirectory() as files:
        output, errors = Path(files, "output"), Path(files, "errors")
        process = start(module, *arguments, env=env, folder=folder, output=output, errors=errors)
        code = exit_code(process)
        words = [module, *map(str, arguments)]
        return subprocess.CompletedProcess(words, code, output.read_text(), errors.read_text())


def start(
    module: str,
    *arguments: str | Path,
    env: Mapping[str, str],
    folder: Path | None = None,
    output: Path = Path(os.devnull),
    errors: Path = Path(os.devnull),
) -> BaseProcess:
    """Start `python -m module` with this environment."""
    words = [module, *map(str, arguments)]
    process = context.Process(target=_main, args=(words, dict(env), folder, output, errors))
    process.start()
    return process


def exit_code(process: BaseProcess, seconds: float | None = None) -> int:
    """Wait for the end of a process; returns its exit code, or minus the signal that killed it."""
    process.join(seconds)
    assert process.exitcode is not None, f"it has not ended after {seconds} s"
    return process.exitcode


def _main(
    words: list[str], env: dict[str, str], folder: Path | None, output: Path, errors: Path
) -> None:
    for number, path in ((1, output), (2, errors)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    if folder:
        os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    if "prefect" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
