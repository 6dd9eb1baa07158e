"""Programs that run in a process of their own, forked from one that has imported their packages.

Each has its own environment, output and exit code, as `python -m` gives it; only the seconds that
the imports of Prefect and Hamilton take are spent once.
"""

import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

PACKAGES = [
    "alembic.command",
    "anyio._backends._asyncio",
    "flows.data_pipeline",
    "flows.dataflows.metrics_transform",
    "flows.dataflows.metrics_quality",
    "hamilton.driver",
    "hypothesis",
    "prefect.cli.deployment",
    "prefect.cli.server",
    "prefect.flow_engine",
    "prefect.server.api.server",
    "prefect.server.database.query_components",
    "prefect_hamilton.bootstrap.apply",
    "prefect_hamilton.bootstrap.record",
    "prefect_hamilton.bootstrap.register_deployments",
    # The plugins that every command and every server of Prefect loads.
    "prefect_dask",
    "prefect_kubernetes",
    "prefect_redis",
    "pytest",  # as multiprocessing imports the program that starts a process
    "typer",
    "uvicorn.protocols.http.auto",
]
"""What the process imports; not the programs themselves, which run as `__main__`."""

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([__name__, *PACKAGES])


class Server:
    """A forked process that serves until it is stopped, with what is used of a `Popen`.

    It has a process group of its own, and ends with this process at the latest.
    """

    def __init__(
        self, module: str, *arguments: str, env: Mapping[str, str], folder: Path, log: Path
    ) -> None:
        words = [module, *arguments]
        self._process = context.Process(
            target=_serve, args=(words, dict(env), folder, log), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self, timeout: float) -> int:
        return exit_code(self._process, timeout)


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


def _serve(words: list[str], env: dict[str, str], folder: Path, log: Path) -> None:
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _main(words, env, folder, log, log)


def _end_with_parent() -> None:
    """Also where that was killed, or gave up while this process was forked."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _main(
    words: list[str], env: dict[str, str], folder: Path | None, output: Path, errors: Path
) -> None:
    # What was imported is permanent: garbage collection would only take time.
    gc.freeze()
    for number, path in ((1, output), (2, errors)):
        with path.open("ab") as file:
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
