"""The Prefect UI of the image and of the local profile sends no requests to third parties."""

import filecmp
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import prefect
import pytest

from prefect_hamilton.server import ui_files
from prefect_hamilton.server.ui_files import UiError
from scripts import local_profile
from tests import prefect_views, services


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The files of the package's UIs, copied to where a test may change them."""
    folders = {}
    for name in ("__ui_static_path__", "__ui_v2_static_path__"):
        original = Path(getattr(prefect, name))
        folders[name] = shutil.copytree(original, tmp_path / original.name)
        monkeypatch.setattr(prefect, name, folders[name])
    return folders


@pytest.fixture
def ui(package: dict[str, Path]) -> Path:
    """The UI that opens by default."""
    return package["__ui_v2_static_path__"]


def text_of(ui: Path) -> str:
    return "".join(script.read_text() for script in ui.rglob("*.js"))


def test_the_analytics_client_has_no_key(package: dict[str, Path], ui: Path) -> None:
    (client,) = (file for file in ui.rglob("*.js") if ui_files.ANALYTICS in file.read_text())
    (key,) = (found[0] for found in ui_files.KEY.finditer(client.read_text()))

    ui_files.main([])

    assert key not in text_of(ui)
    assert "return``" in client.read_text()


def test_no_other_file_of_the_package_changes(package: dict[str, Path]) -> None:
    ui_files.main([])

    for name, folder in package.items():
        original = Path(prefect.__file__).parent / "server" / folder.name
        changed = {
            path.relative_to(folder)
            for path in folder.rglob("*")
            if path.is_file()
            and not (
                (original / path.relative_to(folder)).exists()
                and filecmp.cmp(path, original / path.relative_to(folder), shallow=False)
            )
        }
        client = {path for path in changed if path.parent == Path("assets")}
        assert len(client) == ("v2" in name)
        assert changed - client == {Path("index.html"), Path("ui_pictures.js")}


def test_policy_and_pictures_come_before_the_scripts_of_the_ui(package: dict[str, Path]) -> None:
    ui_files.main([])

    for folder in package.values():
        html = (folder / "index.html").read_text()
        policy, pictures, own = (
            html.index(text)
            for text in ("Content-Security-Policy", "ui_pictures.js", 'type="module"')
        )
        assert policy < pictures < own


def test_an_unknown_analytics_key_fails_the_build(ui: Path) -> None:
    (client,) = (file for file in ui.rglob("*.js") if ui_files.ANALYTICS in file.read_text())
    client.write_text(ui_files.KEY.sub("return atob(`aGVsbG8=`)", client.read_text()))
    page = (ui / "index.html").read_text()

    with pytest.raises(SystemExit, match=r"cannot be prepared: .*0 keys of the analytics client"):
        ui_files.main([])
    assert (ui / "index.html").read_text() == page


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("</head>", '<script src="https://cdn.example.org/x.js"></script></head>', "a third party"),
        ("</head>", '<link href="//fonts.example.org/css" /></head>', "a third party"),
        ('<script type="module"', '<script type="text/javascript"', "does not start"),
        ('<meta charset="UTF-8" />', "", "does not start"),
    ],
)
def test_an_unknown_ui_file_fails_the_build(ui: Path, old: str, new: str, reason: str) -> None:
    page = ui / "index.html"
    assert old in page.read_text()
    page.write_text(page.read_text().replace(old, new))

    with pytest.raises(UiError, match=reason):
        ui_files.prepare(ui)


def test_a_prepared_ui_is_not_prepared_again(ui: Path) -> None:
    ui_files.prepare(ui)

    with pytest.raises(UiError):
        ui_files.prepare(ui)


def test_every_ui_view_is_visited(ui: Path) -> None:
    routes = {route.rstrip("/") for route in re.findall(r"path:`(/[^`]+)`", text_of(ui))}
    aliases = {route for route in routes if route.startswith("/flow-runs/")}

    assert routes - aliases - {"", "/login"} == set(prefect_views.VIEWS)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    with services.prefect_ui(tmp_path_factory.mktemp("state")) as service:
        yield service


@pytest.mark.services
@pytest.mark.parametrize("base", prefect_views.UIS.values(), ids=prefect_views.UIS)
def test_the_local_profile_serves_the_prepared_files(served: services.Service, base: str) -> None:
    page = httpx.get(f"{served.url}{base}/dashboard", headers={"Accept": "text/html"}).text
    assert f'content="{ui_files.POLICY}"' in page
    pictures = httpx.get(f"{served.url}{base}/ui_pictures.js")
    assert pictures.text == ui_files.PICTURES.read_text()
    for script in re.findall(r'src="([^"]+)"', page):
        assert "javascript" in httpx.get(served.url + script).headers["content-type"]


@pytest.mark.services
def test_existing_files_are_not_prepared_again(served: services.Service) -> None:
    folder = Path(served.env["PREFECT_UI_STATIC_DIRECTORY"])
    before = {path: path.stat().st_ino for path in folder.rglob("*")}

    local_profile.prepare(folder.parents[1])

    assert {path: path.stat().st_ino for path in folder.rglob("*")} == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.services
def test_files_of_an_older_version_are_removed(tmp_path: Path) -> None:
    (tmp_path / "prefect-ui" / "3.0.0-abc" / "v1").mkdir(parents=True)

    local_profile.prepare(tmp_path)

    (left,) = (tmp_path / "prefect-ui").iterdir()
    assert left.name == ui_files.key()
