"""The docs: every link has a target, pages stay short, and the site builds strictly."""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.services import ROOT

DOCS = list((ROOT / "docs").glob("*.md"))
PAGES = [*ROOT.glob("*.md"), *DOCS, ROOT / "charts/prefect-hamilton/README.md"]


def tokens(page: Path) -> list[Token]:
    return MarkdownIt().parse(page.read_text())


def links(page: Path) -> list[str]:
    inline = (child for token in tokens(page) for child in token.children or [])
    found = (child.attrGet("href") or child.attrGet("src") for child in inline)
    return [str(link) for link in found if link]


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives to the headings."""
    parsed = tokens(page)
    titles = (b.content for a, b in pairwise(parsed) if a.tag[:1] == "h")
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_internal_link_has_a_target(page: Path) -> None:
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        assert target.exists(), link
        if parts.fragment:
            assert parts.fragment in anchors(target), link


def commands(page: Path) -> list[str]:
    """The shell commands of a page, in blocks and within sentences."""
    parsed = tokens(page)
    blocks = [token.content for token in parsed if token.type == "fence" and token.info == "sh"]
    children = (child for token in parsed for child in token.children or [])
    inline = [child.content for child in children if child.type == "code_inline"]
    return [line for text in (*blocks, *inline) for line in text.replace("\\\n", "").splitlines()]


def accepts(schema: dict[str, Any], node: dict[str, Any], key: list[str]) -> bool:
    """Whether a part of the chart's schema has a property for the key."""
    if not key:
        return True
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    if key[0] in node.get("properties", {}):
        return accepts(schema, node["properties"][key[0]], key[1:])
    return "then" in node and accepts(schema, node["then"], key)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_existing_targets_values_and_files(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    schema = json.loads((ROOT / "charts/prefect-hamilton/values.schema.json").read_text())
    for command in commands(page):
        for target in re.findall(r"(?:^|[ (])make (?:-s )?([a-z-]+)", command.partition("#")[0]):
            assert target in targets, command
        for key in re.findall(r"--set(?:-string)? ([\w.]+)=", command):
            assert accepts(schema, schema, key.split(".")), command
        for path in re.findall(r" (?:-k|-f|--values) ((?:kustomize|charts)/\S+)", command):
            assert (ROOT / path).exists(), command


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 110
    assert len(text.split()) <= 900


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_a_docs_page_has_fewer_than_200_lines(page: Path) -> None:
    assert len(page.read_text().splitlines()) < 200


def test_the_readme_links_to_every_docs_page() -> None:
    linked = set(links(ROOT / "README.md"))
    assert {f"docs/{page.name}" for page in DOCS} <= {link.partition("#")[0] for link in linked}


def build_site(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a folder that looks like the repository."""
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", "built"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "REPOSITORY_URL": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The repository with a copy of docs/ that a test may change."""
    for entry in ROOT.iterdir():
        if entry.name not in (".cache", "docs", "mkdocs.yml"):
            (tmp_path / entry.name).symlink_to(entry)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    return tmp_path


def test_the_site_loads_nothing_from_third_parties(repository: Path) -> None:
    done = build_site(repository)
    assert done.returncode == 0, done.stderr
    pages = list((repository / "built").glob("*.html"))
    assert len(pages) > len(DOCS)
    for page in pages:
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*https?://[^>]*>", page.read_text())
        assert loaded == [], page.name
    for style in (repository / "built").rglob("*.css"):
        assert not re.search(r"(url\(|@import)[\s'\"]*(https?:)?//", style.read_text()), style.name


@pytest.mark.parametrize("link", ["absent.md", "install.md#absent", "../absent.txt"])
def test_a_dead_link_fails_the_site(repository: Path, link: str) -> None:
    with (repository / "docs" / "design.md").open("a") as page:
        page.write(f"\n[Dead]({link})\n")
    done = build_site(repository)
    assert done.returncode == 1
    assert "absent" in done.stderr


def test_a_page_without_an_entry_in_the_navigation_fails_the_site(repository: Path) -> None:
    (repository / "docs" / "orphan.md").write_text("# Orphan\n")
    done = build_site(repository)
    assert done.returncode == 1
    assert "orphan.md" in done.stderr
