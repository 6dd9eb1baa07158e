"""Workflows, the Renovate configuration, versions and the changelog are valid."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()

ALLOWED = {"release.yaml": {"contents", "packages", "id-token"}, "docs.yaml": {"pages", "id-token"}}
"""What jobs of a workflow may write."""


def schema_errors(schema: str, path: Path) -> str:
    """Return the errors of check-jsonschema, which contains the schemas."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_valid(path: Path) -> None:
    assert schema_errors("github-workflows", path) == ""
    if shutil.which("actionlint"):
        done = subprocess.run(["actionlint", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_issue_templates_are_valid() -> None:
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    for form in folder.glob("*.yaml"):
        assert schema_errors("github-issue-forms", form) == ""
    assert schema_errors("github-issue-config", folder / "config.yml") == ""


def test_the_renovate_configuration_is_valid() -> None:
    assert schema_errors("renovate", ROOT / "renovate.json") == ""


def test_invalid_files_are_found(tmp_path: Path) -> None:
    workflow = yaml.safe_load(WORKFLOWS[0].read_text())
    next(iter(workflow["jobs"].values()))["runs_on"] = "x"
    (tmp_path / "workflow.yaml").write_text(yaml.safe_dump(workflow))
    assert "runs_on" in schema_errors("github-workflows", tmp_path / "workflow.yaml")
    (tmp_path / "renovate.json").write_text('{"packageRules": "none"}')
    assert schema_errors("renovate", tmp_path / "renovate.json")


def test_workflows_have_minimal_rights() -> None:
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}, path.name
        for name, job in workflow["jobs"].items():
            assert job["timeout-minutes"] <= 90
            may_write = {k for k, v in job.get("permissions", {}).items() if v == "write"}
            assert may_write <= ALLOWED.get(path.name, set()), name
            assert not may_write or job["needs"], "a job that only reads goes first"
            for step in job["steps"]:
                assert "${{" not in step.get("run", ""), "text of an event would be run"


def test_ci_and_dev_container_install_the_programs_of_the_tests() -> None:
    """Otherwise, tests would be skipped there."""
    listed = re.search(r"packages=\((.+?)\n\)", (ROOT / ".ci/run").read_text(), re.DOTALL)
    assert listed
    packages = set(re.findall(r"\]=(\S+)", listed[1]))
    assert "lighttpd" in packages
    assert packages <= set(
        re.findall(r"[\w-]+", (ROOT / ".devcontainer/devcontainer.json").read_text())
    )
    runner = {"chromium", "postgresql"}  # in GitHub's image, as Chrome and PostgreSQL
    for name in ("ci.yaml", "release.yaml"):
        text = (ROOT / ".github/workflows" / name).read_text()
        assert packages - runner <= set(re.findall(r"[\w-]+", text)), name


def test_each_breaking_change_has_a_section_in_upgrading() -> None:
    unreleased = CHANGELOG.partition("## [Unreleased]")[2].partition("\n## ")[0]
    sections = (ROOT / "UPGRADING.md").read_text().count("\n### ")
    assert sections >= len(re.findall(r"^- Breaking", unreleased, re.MULTILINE)) > 0


def test_a_released_chart_names_the_repository_that_publishes_it(tmp_path: Path) -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yaml").read_text())
    (step,) = [s for s in workflow["jobs"]["chart"]["steps"] if "Chart.yaml" in s.get("name", "")]
    chart = tmp_path / "charts" / "prefect-hamilton"
    shutil.copytree(ROOT / "charts" / "prefect-hamilton", chart)
    url = "https://git.example.org/team/prefect-hamilton"

    subprocess.run(["bash", "-ec", step["run"]], cwd=tmp_path, env={"URL": url}, check=True)

    metadata = yaml.safe_load((chart / "Chart.yaml").read_text())
    before = yaml.safe_load((ROOT / "charts" / "prefect-hamilton" / "Chart.yaml").read_text())
    assert metadata == {**before, "home": url, "sources": [url]}


def test_the_custom_managers_of_renovate_match() -> None:
    """Their patterns find something in each file that they name."""
    found = {}
    for manager in json.loads((ROOT / "renovate.json").read_text())["customManagers"]:
        (pattern,) = manager["managerFilePatterns"]
        files = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        named = [f for f in files if re.search(pattern.strip("/"), f)]
        assert named, pattern
        for file in named:
            for expression in manager["matchStrings"]:
                # The same but for the spelling of a named group.
                matches = list(
                    re.finditer(
                        re.sub(r"\(\?<(?=[a-zA-Z])", "(?P<", expression), (ROOT / file).read_text()
                    )
                )
                assert matches, (pattern, file)
                found |= {m["depName"]: m["currentValue"] for m in matches}
    assert found.keys() == {
        "postgres",
        "valkey/valkey",
        "kindest/node",
        "prefect",
        "python",
        "helm",
        "helm3",
        "kubectl",
    }


def test_all_files_have_the_same_version() -> None:
    chart = yaml.safe_load((ROOT / "charts" / "prefect-hamilton" / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bake = re.search(r'"VERSION" \{ default = "(.+)" \}', (ROOT / "docker-bake.hcl").read_text())
    assert bake
    versions = re.findall(r"^## \[(\d.*)\]", CHANGELOG, re.MULTILINE)
    assert {chart["version"], project["version"], bake[1]} == {versions[0]}


def test_the_app_version_of_the_chart_is_the_version_of_prefect() -> None:
    chart = yaml.safe_load((ROOT / "charts" / "prefect-hamilton" / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"prefect=={chart['appVersion']}" in project["dependency-groups"]["prefect"]


def test_the_changelog_follows_keep_a_changelog() -> None:
    headings = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    for heading in headings[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\]( - \d{4}-\d\d-\d\d)?", heading)
    for part in re.findall(r"^### (.+)$", CHANGELOG, re.MULTILINE):
        assert part in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def test_the_release_takes_its_notes_from_the_changelog() -> None:
    """The very command of the workflow, for the newest version."""
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yaml").read_text())
    (step,) = [s for s in release["jobs"]["chart"]["steps"] if s.get("name") == "Release"]
    command = step["run"].splitlines()[0].partition(" > ")[0]
    version = re.findall(r"^## \[(\d.*)\]", CHANGELOG, re.MULTILINE)[0]
    notes = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "GITHUB_REF_NAME": f"v{version}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "### Added" in notes
    assert "## [" not in notes
