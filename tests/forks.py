"""Programs that run in a process of their own, forked from one that has imported their packages.

Each has its own environment, output and exit code, as `python -m` gives it; only the seconds that
the imports of Prefect take are spent once.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

PACKAGES = [
    "prefect_hamilton.bootstrap.apply",
    "prefect_hamilton.bootstrap.record",
    "prefect_hamilton.bootstrap.register_deployments",
    "prefect_kubernetes",
    "pytest",  # as multiprocessing imports the program that starts a process
    "typer",
]
"""What the process imports; not the programs themselves, which run as `__main__`."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([__name__, *PACKAGES])


def run(
    module: str, *arguments: str | Path, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` with this environment; returns its output and exit code."""
    words = [module, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        process = _server.Process(target=_main, args=(words, dict(env), output, errors))
        process.start()
        process.join()
        code = process.exitcode
        assert code is not None
        return subprocess.CompletedProcess(words, code, output.read_text(), errors.read_text())


def _main(words: list[str], env: dict[str, str], output: Path, errors: Path) -> None:
    for number, path in ((1, output), (2, errors)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    if "prefect" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
