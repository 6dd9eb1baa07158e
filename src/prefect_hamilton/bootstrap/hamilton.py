"""Creates the Hamilton UI's project and lets users write to it."""

from collections.abc import Iterator

import httpx
from pydantic import BaseModel, TypeAdapter

from prefect_hamilton._hamilton_api import HamiltonApi, retry_server_errors

PAGE = 100  # projects in an answer
TIMEOUT = httpx.Timeout(10.0, connect=5.0)


class _Named(BaseModel):
    id: int
    email: str = ""


class _Visibility(BaseModel):
    users_visible: list[_Named] = []
    users_writable: list[_Named] = []
    teams_visible: list[_Named] = []
    teams_writable: list[_Named] = []


class _Project(BaseModel):
    id: int
    name: str
    role: str | None = None
    visibility: _Visibility = _Visibility()


_PROJECTS = TypeAdapter(list[_Project])


def ensure_project(
    api_url: str,
    username: str,
    name: str,
    api_key: str | None = None,
    *,
    description: str = "",
    other_users: tuple[str, ...] = (),
) -> int:
    """Return the id of the project `name` that `username` may write to, made when it is missing.

    The server makes a user at its first request and ignores users of a project that it does not
    know, so each of `other_users` is made first. They may write to the project, too: they are added
    to one that exists, whose other users keep their rights. Names are not unique there: of several
    projects the oldest counts.

    Raises HamiltonError: not reachable, wrong key, not a Hamilton UI.
    """
    with HamiltonApi(api_url, username, api_key, TIMEOUT) as api:
        for user in (username, *other_users):
            # Two first requests of a new user at once make the server answer 500 to one of them.
            retry_server_errors(api.request)("GET", "/whoami", user=user)
        if (oldest := _find(api, name)) is not None:
            _add_users(api, oldest, other_users)
            return oldest.id
        created = api.request(
            "POST",
            "/projects",
            json={
                "name": name,
                "description": description,
                "tags": {},
                "visibility": {
                    "user_ids_visible": [],
                    "user_ids_writable": [username, *other_users],
                    "team_ids_visible": [],
                    "team_ids_writable": [],
                },
            },
        )
        return _Project.model_validate(created).id


def find_project(api_url: str, username: str, name: str, api_key: str | None = None) -> int | None:
    """Return the id of the project that `ensure_project` would return; None if it would create it.

    Raises HamiltonError as it does.
    """
    with HamiltonApi(api_url, username, api_key, TIMEOUT) as api:
        found = _find(api, name)
    return found.id if found else None


def _find(api: HamiltonApi, name: str) -> _Project | None:
    mine = (each for each in _projects(api) if each.name == name and each.role == "write")
    return min(mine, key=lambda project: project.id, default=None)


def _projects(api: HamiltonApi) -> Iterator[_Project]:
    """Yield all projects that the user may see; the server answers in pages."""
    seen = 0
    while page := _PROJECTS.validate_python(
        api.request("GET", "/projects", params={"limit": PAGE, "offset": seen})
    ):
        yield from page
        seen += len(page)


def _add_users(api: HamiltonApi, project: _Project, other_users: tuple[str, ...]) -> None:
    """Let the users write to the project; asks for nothing when they may already."""
    visibility = project.visibility
    writers = [user.email for user in visibility.users_writable]
    if not (missing := [user for user in other_users if user not in writers]):
        return
    # The whole list is written anew.
    readers = [user.email for user in visibility.users_visible if user.email not in missing]
    members = {
        "user_ids_visible": readers,
        "user_ids_writable": [*writers, *missing],
        "team_ids_visible": [team.id for team in visibility.teams_visible],
        "team_ids_writable": [team.id for team in visibility.teams_writable],
    }
    change = {"project": {"visibility": members}, "attributes": None}
    api.request("PUT", f"/projects/{project.id}", json=change)
