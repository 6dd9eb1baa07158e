"""Hooks of MkDocs: pages outside docs/, and links that work in the repository and in the site.

Pages link to each other as on a Git host: relative to their folder in the repository. In the site,
a link to another page leads to that page, and a link to any other file leads to the Git host, if
`extra.repository` has its address. A link to a missing file fails the build.
"""

import posixpath
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
log = get_plugin_logger("docs_site")


class _Links(Treeprocessor):
    """Rewrites the links of one page; runs before MkDocs validates them."""

    def __init__(self, page: Page, files: Files, repository: str) -> None:
        super().__init__()
        self.source = Path(str(page.file.abs_src_path)).relative_to(ROOT).as_posix()
        self.folder = posixpath.dirname(page.file.src_uri)
        self.pages = {
            Path(str(file.abs_src_path)).relative_to(ROOT).as_posix(): file.src_uri
            for file in files
            if file.abs_src_path and Path(file.abs_src_path).is_relative_to(ROOT)
        }
        self.repository = repository

    def run(self, root: Element) -> None:
        for element in root.iter():
            for attribute in ("href", "src"):
                link = urlsplit(element.get(attribute) or "")
                if link.path and not link.scheme and not link.netloc:
                    target = self._target(unquote(link.path))
                    if target is None:
                        del element.attrib[attribute]
                        element.tag = "span"  # MkDocs expects an address in a link
                    else:
                        fragment = f"#{link.fragment}" if link.fragment else ""
                        element.set(attribute, target + fragment)

    def _target(self, path: str) -> str | None:
        """Return the link in the site; None if the file is not in it and has no address."""
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(self.source), path))
        if wanted in self.pages:
            return posixpath.relpath(self.pages[wanted], self.folder or ".")
        if not (ROOT / wanted).exists():
            log.warning("%s links to %s, which does not exist", self.source, path)
        return f"{self.repository}/blob/main/{wanted}" if self.repository else None


class _LinksExtension(Extension):
    """Adds the rewriting of links to the Markdown parser of each page."""

    page: Page
    files: Files

    def __init__(self, repository: str) -> None:
        super().__init__()
        self.repository = repository

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  # a name of Markdown
        # After the inline patterns (20), which make the links, and before MkDocs (0).
        md.treeprocessors.register(_Links(self.page, self.files, self.repository), "docs_site", 10)


_links: _LinksExtension


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the rewriting of links."""
    global _links
    _links = _LinksExtension((config.extra["repository"] or "").rstrip("/"))
    config.markdown_extensions.append(_links)  # type: ignore[arg-type]  # Markdown takes both
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/."""
    for source, name in config.extra["pages"].items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Note the page that is rendered next."""
    _links.page, _links.files = page, files
    return markdown
