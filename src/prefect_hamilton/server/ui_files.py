"""Prefect's UIs without their calls to third parties.

The files that the package ships start the client of an analytics service, which asks its servers
for a configuration even where the server's analytics are off, and show pictures of block types
that come from other hosts. Prefect has no setting for either. `prepare` does what a build without
a key for that service does, adds a script that shows local pictures, and adds a policy with which
browsers block requests to other servers.

Run alone, it prepares the installed package's own files, as an image is built; with a folder, a
copy that Prefect makes there, for `PREFECT_UI_STATIC_DIRECTORY`.
"""

import hashlib
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

PICTURES = Path(__file__).with_name("ui_pictures.js")

LOOPBACK = "http://127.0.0.1:* ws://127.0.0.1:* http://localhost:* ws://localhost:*"
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-eval'",  # the graph of a run compiles its drawing
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        f"connect-src 'self' data: blob: {LOOPBACK}",  # the API may have a separate port
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)

# Unique to the analytics client; its key is the one literal of this form that a function returns.
ANALYTICS = "sr-client-cfg.amplitude.com"
KEY = re.compile(r"return\s*([`'\"])[0-9a-f]{32}\1")

HEAD = re.compile(r"<head>\s*<meta charset=\"UTF-8\" />")
# Behind a base path the UI's own files have it as a prefix.
OWN_SCRIPT = re.compile(r'<script type="module"[^>]* src="([^"]*)/assets/[^"]+"></script>')
THIRD_PARTY = re.compile(r'\b(?:src|href)="(?:https?:)?//[^"]*"')


class UiError(Exception):
    """The UI's files are not those that this module supports, for example after an upgrade."""


def prepare(folder: Path) -> None:
    """Change the files of one UI in place, or leave them as they are and raise UiError."""
    page = folder / "index.html"
    html = _with_pictures(page)
    scripts = {file: _without_key(file) for file in _analytics(folder)}
    for file, text in {**scripts, page: html}.items():
        _replace(file, text)
    shutil.copyfile(PICTURES, folder / PICTURES.name)


def prepare_package() -> None:
    """Prepare the files of the installed package, from which any server makes its copy."""
    import prefect

    for folder in (prefect.__ui_static_path__, prefect.__ui_v2_static_path__):
        prepare(Path(folder))


def prepare_copy(folder: Path) -> None:
    """Have Prefect copy both UIs into `folder`, as its server does at its start, and prepare them.

    A server of the same version serves such a copy as it is.
    """
    from prefect.server.api.server import create_ui_app
    from prefect.settings import PREFECT_UI_STATIC_DIRECTORY, temporary_settings

    shutil.rmtree(folder, ignore_errors=True)
    with temporary_settings({PREFECT_UI_STATIC_DIRECTORY: str(folder)}):
        create_ui_app(ephemeral=False)
    for name in ("v1", "v2"):
        prepare(folder / name)


def key() -> str:
    """Name a copy: another one for each version of Prefect and of what is done to its files."""
    own = hashlib.sha256(Path(__file__).read_bytes() + PICTURES.read_bytes()).hexdigest()
    return f"{version('prefect')}-{own[:12]}"


def _analytics(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*.js") if ANALYTICS in file.read_text("utf-8")]


def _without_key(script: Path) -> str:
    text, count = KEY.subn(r"return\1\1", script.read_text("utf-8"))
    if count != 1:
        raise UiError(f"{script}: {count} keys of the analytics client instead of 1")
    return text


def _with_pictures(page: Path) -> str:
    try:
        html = page.read_text("utf-8")
    except OSError as error:
        raise UiError(f"{page}: {error.strerror}") from error
    own = OWN_SCRIPT.search(html)
    if len(HEAD.findall(html)) != 1 or own is None or PICTURES.name in html:
        raise UiError(f"{page} does not start like the page of an unmodified UI")
    if other := THIRD_PARTY.search(html):
        raise UiError(f"{page} loads {other.group()} from a third party")
    added = (
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}" />',
        '<meta name="referrer" content="same-origin" />',
        f'<script src="{own.group(1)}/{PICTURES.name}"></script>',
    )
    return HEAD.sub(lambda head: "\n    ".join((head.group(), *added)), html)


def _replace(file: Path, text: str) -> None:
    """Write a new file, whose old one may be a link into the cache of a package installer."""
    draft = file.with_name(f"{file.name}.new")
    draft.write_text(text, "utf-8")
    shutil.copymode(file, draft)
    draft.replace(file)


def main(words: list[str]) -> None:
    """Prepare the installed package, or the folder that is named."""
    try:
        if words:
            prepare_copy(Path(words[0]))
        else:
            prepare_package()
    except UiError as error:
        sys.exit(f"Prefect's UI cannot be prepared: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
