"""The files that the template generates."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.services import ROOT
from tests.template.conftest import commit, copier, git, make


def test_the_template_asks_three_questions() -> None:
    questions = {
        name: question
        for name, question in yaml.safe_load((ROOT / "copier.yml").read_text()).items()
        if not name.startswith("_") and question.get("when") is not False
    }
    assert set(questions) == {"name", "repository", "library"}
    assert all(question["default"] for question in questions.values())


def test_the_repository_is_named_after_its_folder(tmp_path: Path, source: Path) -> None:
    folder = make(tmp_path / "Team_Flows", source=source)
    assert tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"] == "team-flows"
    assert yaml.safe_load((folder / "prefect.yaml").read_text())["name"] == "team-flows"
    assert (folder / "README.md").read_text().startswith("# team-flows\n")


def sources(folder: Path) -> dict[str, str]:
    content = tomllib.loads((folder / "pyproject.toml").read_text())
    found: dict[str, str] = content["tool"]["uv"]["sources"]["prefect-hamilton"]
    return found


def test_from_a_checkout_the_library_is_a_path_dependency(made: Path) -> None:
    assert sources(made) == {"path": str(ROOT)}


def test_from_git_the_library_is_pinned_to_the_commit_of_the_template(
    tmp_path: Path, source: Path
) -> None:
    url = "https://git.example.org/team/prefect-hamilton.git"
    folder = make(tmp_path / "flows", f"library={url}", source=source)
    assert sources(folder) == {"git": url, "rev": git("rev-parse", "HEAD", folder=source)}


@pytest.mark.parametrize(
    "answer",
    [
        "name=My Flows",
        "name=",
        "repository=https://user:secret@git.example.org/team/flows.git",
        "repository=flows",
        "library=",
    ],
)
def test_an_invalid_answer_is_refused(tmp_path: Path, source: Path, answer: str) -> None:
    said = copier(
        "copy", "--defaults", "--data", answer, str(source), "flows", folder=tmp_path, check=False
    )
    assert f"Validation error for question '{answer.split('=')[0]}'" in said
    assert not (tmp_path / "flows" / "README.md").exists()


def workflows(folder: Path) -> list[Path]:
    return sorted((folder / ".github" / "workflows").iterdir())


def test_the_workflows_of_the_repository_are_valid_and_least_privileged(made: Path) -> None:
    assert [path.name for path in workflows(made)] == ["deploy.yaml", "tests.yaml"]
    for path in workflows(made):
        command = [sys.executable, "-m", "check_jsonschema"]
        command += ["--builtin-schema", "vendor.github-workflows", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        if shutil.which("actionlint"):
            done = subprocess.run(["actionlint", path], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
        assert not any("${{" in step.get("run", "") for step in steps), "text of an event is run"


def test_a_pull_request_of_a_fork_gets_no_preview(made: Path) -> None:
    jobs: dict[str, Any] = yaml.safe_load(workflows(made)[0].read_text())["jobs"]
    for name in ("preview", "remove-preview"):
        assert "head.repo.full_name == github.repository" in jobs[name]["if"]


def test_the_image_of_the_repository_has_this_version(made: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"ARG VERSION={version}\n" in (made / "Dockerfile").read_text()


def test_the_repository_pins_the_same_prefect_version(made: Path) -> None:
    def prefect(folder: Path, group: str) -> list[str]:
        groups = tomllib.loads((folder / "pyproject.toml").read_text())["dependency-groups"]
        return [each for each in groups[group] if str(each).startswith("prefect==")]

    assert prefect(made, "dev") == prefect(ROOT, "prefect")
    assert [
        yaml.safe_load((folder / "prefect.yaml").read_text())["prefect-version"]
        for folder in (made, ROOT)
    ] == [prefect(ROOT, "prefect")[0].removeprefix("prefect==")] * 2


def test_the_readme_of_the_repository_fits_one_screen(made: Path) -> None:
    assert len((made / "README.md").read_text().splitlines()) <= 50


def test_an_update_merges_template_changes_with_team_changes(tmp_path: Path, source: Path) -> None:
    folder = make(
        tmp_path / "flows", "repository=ssh://git@git.example.org/team/flows.git", source=source
    )
    flow = folder / "flows" / "daily_revenue.py"
    flow.write_text(flow.read_text().replace("retries=2", "retries=5"))
    git("init", "--quiet", folder=folder)
    commit(folder, "Start")

    (template,) = (source / "template").glob("flows/daily_revenue.py")
    template.write_text(template.read_text().replace("@flow\n", "@flow(log_prints=True)\n"))
    (source / "template" / "NEW.md").write_text("new\n")
    commit(source, "Later")

    copier("update", "--defaults", "--vcs-ref", "HEAD", folder=folder)
    assert "retries=5" in flow.read_text()
    assert "@flow(log_prints=True)" in flow.read_text()
    assert (folder / "NEW.md").read_text() == "new\n"
    assert "git@git.example.org" in (folder / ".copier-answers.yml").read_text()
