"""A flows repository made from the template, as a team makes one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import environments, services

GIT = {
    **{f"GIT_{who}_NAME": "team" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "team@localhost" for who in ("AUTHOR", "COMMITTER")},
}


def copier(*arguments: str, folder: Path, check: bool = True) -> str:
    """Run copier in a folder; returns what it prints."""
    command = [sys.executable, "-m", "copier", *arguments]
    return services.output(*command, folder=folder, env=os.environ | GIT, check=check)


def git(*arguments: str, folder: Path) -> str:
    command = ["git", *arguments]
    return services.output(*command, folder=folder, env=os.environ | GIT).strip()


def commit(folder: Path, message: str) -> None:
    git("add", "--all", folder=folder)
    git("commit", "--quiet", "--message", message, folder=folder)


def make(folder: Path, *data: str, source: Path = services.ROOT) -> Path:
    """Make a repository with what is answered, defaults otherwise; returns its folder."""
    answers = [word for each in data for word in ("--data", each)]
    # A checkout that has tags would give the template of the last release.
    copier(
        "copy",
        "--defaults",
        "--vcs-ref",
        "HEAD",
        *answers,
        str(source),
        folder.name,
        folder=folder.parent,
    )
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A Git repository of the template alone, which a test may change."""
    folder = tmp_path / "source"
    shutil.copytree(services.ROOT / "template", folder / "template")
    shutil.copy(services.ROOT / "copier.yml", folder)
    git("init", "--quiet", "--initial-branch=main", folder=folder)
    commit(folder, "Start")
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository made with every default."""
    return make(tmp_path_factory.mktemp("made") / "my-flows")


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its environment and its lock file, committed to Git."""
    folder = make(tmp_path_factory.mktemp("team") / "my-flows")
    environments.uv("sync", "--quiet", "--python", sys.executable, "--project", str(folder))
    git("init", "--quiet", "--initial-branch=main", folder=folder)
    commit(folder, "Start")
    return folder


def run(*command: str, folder: Path, code: int = 0, **env: str) -> str:
    """Run a command without an active virtual environment; returns its output.

    It must end with the exit code.
    """
    clean = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PREFECT_API_URL")}
    done = subprocess.run(
        command,
        cwd=folder,
        env=clean | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout
