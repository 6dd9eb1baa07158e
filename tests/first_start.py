"""What a server makes at its first start, made once for all servers of the tests.

A server with a new database runs hundreds of migrations and registers the types of blocks, which
takes longer than all else that most tests do with it. Here one process makes each database,
whichever asks first, and all others copy it. A server that starts with a copy checks it, and makes
only what it lacks.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from scripts import local_profile
from tests import shared

PREFECT_START = """
import asyncio
from prefect.plugins import load_prefect_collections
from prefect.server.database import provide_database_interface
from prefect.server.models.block_registration import run_block_auto_registration

async def start():
    database = provide_database_interface()
    await database.create_db()
    async with await database.session() as session:
        await run_block_auto_registration(session)

load_prefect_collections()
asyncio.run(start())
"""
"""What the server does with its database before it answers."""

ROOT = Path(__file__).parent.parent


def prefect(home: Path) -> None:
    """Put the database of a new Prefect server in its home, unless it has one."""
    if not (home / "prefect.db").exists():
        _copy(shared.once("prefect", _migrate_prefect), home)


def hamilton_ui(state: Path) -> None:
    """Put the database of a new Hamilton UI in its state folder, unless it has one."""
    if not (state / "db.sqlite3").exists():
        _copy(shared.once("hamilton-ui", _migrate_hamilton_ui), state)


def prefect_ui(state: Path) -> None:
    """Put the files of the Prefect UI in the state folder of a local profile."""
    _copy(shared.once("prefect-ui", local_profile.prepare) / "prefect-ui", state / "prefect-ui")


def profile(state: Path) -> None:
    """Put all of these in the state folder of a local profile."""
    prefect(state / "prefect")
    hamilton_ui(state / "hamilton-ui")
    prefect_ui(state)


def _copy(made: Path, folder: Path) -> None:
    shutil.copytree(made, folder, symlinks=True, dirs_exist_ok=True)


def _migrate_prefect(home: Path) -> None:
    _run("-c", PREFECT_START, PREFECT_HOME=str(home))
    _keep_only("prefect.db", home)


def _migrate_hamilton_ui(state: Path) -> None:
    migrate = "hamilton_ui.configure(Path(sys.argv[1])); hamilton_ui.migrate()"
    program = f"import sys; from pathlib import Path; from scripts import hamilton_ui; {migrate}"
    _run("-c", program, str(state))
    _keep_only("db.sqlite3", state)  # each server has a secret key of its own


def _keep_only(database: str, folder: Path) -> None:
    """Remove all but an SQLite database and its log of writes, `-wal`."""
    for other in folder.iterdir():
        if not other.name.startswith(database):
            shutil.rmtree(other) if other.is_dir() else other.unlink()


def _run(*arguments: str, **env: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
