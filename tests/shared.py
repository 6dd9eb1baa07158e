"""What all processes of one run of the tests share: pytest-xdist starts several."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

FOLDER = "PREFECT_HAMILTON_TESTS"
"""Variable with a folder that lasts as long as the run."""


def once(name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder of this name, which the first process that asks for it makes."""
    shared = Path(os.environ[FOLDER])
    folder, made = shared / name, shared / f"{name}.made"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder
