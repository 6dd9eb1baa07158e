"""The pages for people: no link leads nowhere, and README stays short."""

import re
from itertools import pairwise
from pathlib import Path
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
