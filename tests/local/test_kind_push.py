"""The files that `make kind-push` pushes, which every pod in the cluster can read."""

import subprocess
from pathlib import Path

import pytest

from scripts import kind


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
    command = ["git", *identity, *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def put(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    put(tmp_path, **{"flows/a.py": "1", "flows/gone.py": "1", "prefect.yaml": "1"})
    put(tmp_path, **{".gitignore": "*.ignored\n", "tracked.ignored": "1"})
    git(tmp_path, "add", "--force", ".")
    git(tmp_path, "commit", "--quiet", "-m", "Start")
    return tmp_path


def test_uncommitted_changes_are_pushed(repository: Path) -> None:
    put(repository, **{"flows/a.py": "2", "flows/data/new file.csv": "1", "added.py": "1"})
    put(repository, **{"flows/x.ignored": "1"})
    (repository / "flows/gone.py").unlink()
    git(repository, "add", "--intent-to-add", "added.py")
    status = git(repository, "status", "--porcelain")
    commit, tree = kind.snapshot(repository)
    assert git(repository, "ls-tree", "-r", "-z", "--name-only", commit).split("\0")[:-1] == [
        ".gitignore",
        "added.py",
        "flows/a.py",
        "flows/data/new file.csv",
        "prefect.yaml",
        "tracked.ignored",
    ]
    assert git(repository, "show", f"{tree}:flows/a.py") == "2"
    assert git(repository, "show", f"{tree}:added.py") == "1"
    assert git(repository, "status", "--porcelain") == status


@pytest.mark.parametrize("name", [".env", "token.txt", "secrets.yaml", "flows/.env", "flows/.x/y"])
def test_files_that_may_hold_secrets_are_left_out_and_named(
    repository: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    before = git(repository, "rev-parse", "HEAD^{tree}")
    put(repository, **{name: "hunter2"})
    _, tree = kind.snapshot(repository)
    assert tree == before
    said = capsys.readouterr().out
    assert said == f"Not pushed because Git does not track it (use git add): {name}\n"


def test_a_repository_without_commits_is_pushed(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    put(tmp_path, **{"prefect.yaml": "1", "flows/a.py": "1"})
    git(tmp_path, "add", "--all")
    assert kind.repository_at(tmp_path) == tmp_path
    commit, _ = kind.snapshot(tmp_path)
    assert git(tmp_path, "ls-tree", "-r", "--name-only", commit).split() == [
        "flows/a.py",
        "prefect.yaml",
    ]


def test_without_a_folder_the_example_flows_are_used() -> None:
    assert kind.repository_at(None) == kind.ROOT


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("nowhere", "has no prefect.yaml"),
        ("not_added", "not the root of a Git repository that tracks prefect.yaml"),
        ("below", "not the root of a Git repository that tracks prefect.yaml"),
    ],
)
def test_a_folder_that_cannot_be_pushed_is_refused(tmp_path: Path, folder: str, said: str) -> None:
    put(tmp_path, **{"not_added/prefect.yaml": "1"})
    git(tmp_path / "not_added", "init", "--quiet")
    git(tmp_path, "init", "--quiet")
    put(tmp_path, **{"below/prefect.yaml": "1"})
    git(tmp_path, "add", "below")
    with pytest.raises(kind.KindError, match=said):
        kind.repository_at(tmp_path / folder)
