"""The Hamilton UI's project, brought about through its HTTP API."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import tenacity
from pydantic import BaseModel, TypeAdapter

PAGE = 100  # projects in an answer
TIMEOUT = httpx.Timeout(10.0, connect=5.0)


class HamiltonError(Exception):
    """The project could not be ensured; the message names the cause and the way out."""


class _ServerError(HamiltonError):
    """The server answered 5xx."""


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

# Two first requests of a new user at once make the server answer 500 to one of them.
_retry = tenacity.retry(
    retry=tenacity.retry_if_exception_type(_ServerError),
    stop=tenacity.stop_after_attempt(4),
    wait=tenacity.wait_random_exponential(multiplier=0.2, max=2),
    reraise=True,
)


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
    to one that exists, and who may see it already still may. Names are not unique there: of several
    projects the oldest counts.

    Raises HamiltonError: not reachable, wrong key, not a Hamilton UI.
    """
    api_url = api_url.rstrip("/")
    if urlsplit(api_url).scheme not in ("http", "https") or not urlsplit(api_url).hostname:
        raise HamiltonError(f"the Hamilton UI's address must be an http(s) URL, not {api_url!r}")
    headers = {"x-api-key": api_key} if api_key else {}
    with httpx.Client(base_url=f"{api_url}/api/v1", headers=headers, timeout=TIMEOUT) as http:
        for user in (username, *other_users):
            _request(http, "GET", "/whoami", user)
        mine = [
            project
            for project in _projects(http, username)
            if project.name == name and project.role == "write"
        ]
        if mine:
            oldest = min(mine, key=lambda project: project.id)
            _add_users(http, oldest, username, other_users)
            return oldest.id
        created = _request(
            http,
            "POST",
            "/projects",
            username,
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
        return _Project.model_validate_json(created).id


def _projects(http: httpx.Client, username: str) -> Iterator[_Project]:
    """Yield all projects that the user may see; the server answers in pages."""
    seen = 0
    while page := _PROJECTS.validate_json(
        _request(http, "GET", f"/projects?limit={PAGE}&offset={seen}", username)
    ):
        yield from page
        seen += len(page)


def _add_users(
    http: httpx.Client, project: _Project, username: str, other_users: tuple[str, ...]
) -> None:
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
    _request(http, "PUT", f"/projects/{project.id}", username, json=change)


@_retry
def _request(http: httpx.Client, method: str, path: str, user: str, json: object = None) -> bytes:
    url = str(http.base_url).removesuffix("/").removesuffix("/api/v1")
    try:
        response = http.request(method, path, json=json, headers={"x-api-user": user})
    except httpx.TimeoutException as error:
        raise HamiltonError(f"the Hamilton UI at {url} does not answer") from error
    except httpx.HTTPError as error:
        raise HamiltonError(f"the Hamilton UI at {url} cannot be reached: {error}") from error
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise HamiltonError(f"the Hamilton UI at {url} refuses the API key (HAMILTON_API_KEY)")
    if response.is_server_error:
        raise _ServerError(f"{url} answered {response.status_code} to {method} {path}")
    is_json = response.headers.get("content-type", "").startswith("application/json")
    if not response.is_success or not is_json:
        raise HamiltonError(
            f"{url} is no Hamilton UI: it answered {response.status_code} to {method} {path}"
        )
    return response.content
