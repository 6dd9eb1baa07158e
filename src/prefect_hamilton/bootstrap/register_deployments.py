"""Clones the flows repository as a flow run does, and registers its deployments."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

import anyio
import typer
from prefect.runner.storage import GitRepository
from pydantic import SecretStr
from tenacity import (
    RetryCallState,
    retry,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from prefect_hamilton.bootstrap.changes import Change
from prefect_hamilton.bootstrap.created import NAMED, Created, Entry
from prefect_hamilton.bootstrap.desired_state import DesiredState, load_repository, read_file
from prefect_hamilton.bootstrap.errors import BootstrapError
from prefect_hamilton.bootstrap.objects import (
    AUTOMATION,
    DEPLOYMENT,
    GLOBAL_LIMIT,
    TAG_LIMIT,
    VARIABLE,
)
from prefect_hamilton.bootstrap.prefect_deploy import Exchange, Known, Wanted
from prefect_hamilton.bootstrap.prefect_yaml import unknown_keys
from prefect_hamilton.flow_pod import pull_errors

STATE_FILE = "prefect-state.yaml"
"""The file beside prefect.yaml with the objects that its flows need on the server."""

COMMIT = re.compile("(?:[0-9a-f]{40}|[0-9a-f]{64})", re.IGNORECASE)
"""A full SHA, because a Git server does not accept a shorter one."""

ADDRESS = re.compile(
    r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?(?P<before_host>[^@]*)@.*", re.IGNORECASE | re.DOTALL
)
"""A URL, or user@host:path as SSH has it, with an @ somewhere."""

SILENCE = {"GIT_HTTP_LOW_SPEED_LIMIT": "1", "GIT_HTTP_LOW_SPEED_TIME": "60"}
"""Variables with which git gives up a silent server: if it is killed, its transport goes on."""

FAILURES = (RuntimeError, subprocess.CalledProcessError)
"""Messages of `git clone`, in Prefect's words, and of `git fetch` for a commit."""


CLONE_SECONDS = 300.0
"""How long the clone of one repository may take: all others wait for it."""

DEPLOY_SECONDS = 600.0
"""How long `prefect deploy` may take for one repository, which imports its flows."""


class NameTakenError(BootstrapError):
    """Another repository names the same objects; `keys` are theirs."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__(f"{', '.join(keys)}: another repository names the same.")
        self.keys = keys


@dataclass(frozen=True)
class Repository:
    """A clone of a repository of flows, and which of its deployments are wanted."""

    source: str
    address: str
    folder: Path
    """The folder with prefect.yaml, in the clone."""
    files: dict[str, list[Wanted]]
    """Files such as prefect.yaml, by their path below the folder, and what to deploy of each."""
    environment: dict[str, str]
    """What prefect.yaml gets besides the environment of this process."""
    hidden: frozenset[str]
    """Variables of this process that it does not get."""
    tags: tuple[str, ...]
    state: DesiredState

    def keys(self) -> set[str]:
        """Return the keys of the objects of the state file."""
        state = self.state
        return {
            *(f"{VARIABLE} {each.name}" for each in state.variables),
            *(f"{GLOBAL_LIMIT} {each.name}" for each in state.global_concurrency_limits),
            *(f"{TAG_LIMIT} {each.tag}" for each in state.tag_concurrency_limits),
            *(f"{AUTOMATION} {each.name}" for each in state.automations),
        }


@dataclass(frozen=True)
class Flows:
    """A flows repository, and which of its deployments are wanted.

    `name` is its key in the chart's flows.repositories, or empty. `path` is the folder with
    `prefect_files`, which are names or patterns. `names` are those of deployments, or patterns.
    `pools` are the work pools that deployments may use: all, if it is empty. With `checkout`, a
    clone that exists is used.
    """

    address: str
    ref: str
    names: tuple[str, ...]
    checkout: Path | None = None
    name: str = ""
    path: str = "."
    prefect_files: tuple[str, ...] = ("prefect.yaml",)
    submodules: bool = False
    pools: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    prune: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of `git` and prefect.yaml, besides those of this process."""
    missing: str = ""
    """What to do about its Git credential before it can be cloned."""
    hidden: frozenset[str] = frozenset()
    """Variables of this process with the credentials of other repositories."""
    recorded: Mapping[str, Any] = field(default_factory=dict)
    """The settings as the record keeps them."""

    @property
    def source(self) -> str:
        """Return what the record calls it. An address has no spaces."""
        return f"{NAMED}{self.name}" if self.name else self.address

    @classmethod
    def from_environment(cls, names: list[str], checkout: Path | None) -> Self:
        """Read FLOWS_REPOSITORY, FLOWS_REF (a branch, tag or commit) and FLOWS_SUBMODULES.

        Raises BootstrapError when one of them is missing, or the address contains a credential.
        """
        for variable in ("FLOWS_REPOSITORY", "FLOWS_REF"):
            if not os.environ.get(variable):
                raise BootstrapError(f"{variable} is not set: it must name what to clone.")
        address, ref = os.environ["FLOWS_REPOSITORY"], os.environ["FLOWS_REF"]
        check_credential(address, os.environ)
        submodules = os.environ.get("FLOWS_SUBMODULES")
        if submodules not in (None, "", "true"):
            # git_clone treats any text except the empty one as true.
            raise BootstrapError("FLOWS_SUBMODULES must be true or unset.")
        path = os.environ.get("FLOWS_PATH") or "."
        return cls(address, ref, tuple(names), checkout, path=path, submodules=bool(submodules))

    def repository(self, folder: Path) -> Repository:
        """Return the checkout, or a new one below an empty folder.

        Reads GIT_ACCESS_TOKEN for a private repository. prefect.yaml gets the reference as
        FLOWS_COMMIT or FLOWS_BRANCH. Raises BootstrapError when the repository cannot be cloned,
        has no prefect.yaml, or names a deployment of a work pool that it may not use.
        """
        if self.missing and self.checkout is None:
            raise BootstrapError(self.missing)
        if self.name:
            check_credential(self.address, self.environment)
        is_commit = COMMIT.fullmatch(self.ref)
        named = {"FLOWS_COMMIT": self.ref.lower()} if is_commit else {"FLOWS_BRANCH": self.ref}
        checkout = self.checkout or clone(self, folder, named)
        if self.checkout is None:
            typer.echo(f"Cloned {self.address} at {self.ref}.", err=True)
        where = self.checkout or f"{self.address} at {self.ref}"
        within, files = find_files(checkout, self.path, self.prefect_files, str(where))
        wanted = select(files, list(self.names))
        if self.pools:
            for each in (each for found in wanted.values() for each in found):
                check_pool(each, self.pools)
        return Repository(
            source=self.source,
            address=self.address,
            folder=within,
            files={
                str(file.relative_to(within)): [each.wanted for each in found]
                for file, found in wanted.items()
            },
            environment={**self.environment, **named},
            hidden=self.hidden,
            tags=self.tags,
            state=repository_state(within),
        )


def find_files(
    checkout: Path, path: str, patterns: Sequence[str], where: str
) -> tuple[Path, list[Path]]:
    """Return the folder `path` of a checkout, and the files in it that a pattern matches.

    Raises BootstrapError when the folder is not in the checkout, or a pattern matches no file.
    """
    folder = (checkout / path).resolve()
    if not (folder.is_dir() and folder.is_relative_to(checkout.resolve())):
        raise BootstrapError(f"{where} has no folder {path}.")
    files: dict[Path, None] = {}
    for pattern in patterns:
        found = [each for each in sorted(folder.glob(pattern)) if each.is_file()]
        if not found:
            raise BootstrapError(f"{where} has no {PurePosixPath(path) / pattern}.")
        files |= dict.fromkeys(found)
    return folder, list(files)


@dataclass(frozen=True)
class Selected:
    """A deployment of a file that a pattern matches."""

    file: Path
    wanted: Wanted
    pool: Any
    """Name of the work pool, as it stands in the file."""


def select(files: list[Path], patterns: list[str]) -> dict[Path, list[Selected]]:
    """Return the deployments of files such as prefect.yaml that a pattern matches, each once.

    A pattern is `name` or `flow/name`, with * for any characters. Prefect passes over a deployment
    with a misspelt key, and over a name that matches nothing: here, what it passes over would be
    deleted. Raises BootstrapError for both.
    """
    found = {}
    matched: set[str] = set()
    for file in files:
        found[file] = _select(file, patterns, matched)
    for pattern in patterns:
        if "*" not in pattern and pattern not in matched:
            names = " and ".join(file.name for file in files)
            raise BootstrapError(
                f"{names} has no deployment {pattern}: correct the name (the chart's value is "
                "flows.deployments)."
            )
    return found


def _select(file: Path, patterns: list[str], matched: set[str]) -> list[Selected]:
    content = read_file(file)
    deployments = content.get("deployments") if isinstance(content, dict) else None
    if not isinstance(deployments, list):
        raise BootstrapError(f"{file.name} has no list of deployments: add the key deployments.")
    found: list[tuple[int, str, dict[str, Any]]] = []
    for number, deployment in enumerate(deployments):
        for key in ("name", "entrypoint"):
            if not isinstance(deployment, dict) or not isinstance(deployment.get(key), str):
                raise BootstrapError(f"{file.name}: deployments.{number} has no {key}: add it.")
        name = deployment["name"]
        for place in unknown_keys(deployment):
            key = ".".join(map(str, place))
            raise BootstrapError(
                f"{file.name}: deployment {name}: unknown key {key}: correct or remove it."
            )
        function = deployment["entrypoint"].rpartition(":")[2].replace("_", "-")
        matching = {pattern for pattern in patterns if _matches(pattern, function, name)}
        matched |= matching
        if matching:
            found.append((number, function, deployment))
    all_names = [deployment["name"] for deployment in deployments]
    return [
        Selected(
            file,
            Wanted(
                selector=name if all_names.count(name) == 1 else f"{function}/{name}",
                name=name,
                entrypoint=deployment["entrypoint"],
                place=f"{file.name}: deployments.{number}",
            ),
            _pool(deployment),
        )
        for number, function, deployment in found
        if (name := deployment["name"])
    ]


def _pool(deployment: dict[str, Any]) -> Any:
    pool = deployment.get("work_pool")
    return pool.get("name") if isinstance(pool, dict) else None


def check_pool(selected: Selected, pools: Collection[str]) -> None:
    """Raise BootstrapError when the deployment's work pool is none of the pools."""
    if selected.pool not in pools:
        has = f"has the work pool {selected.pool}" if selected.pool else "names no work pool"
        raise BootstrapError(
            f"{selected.file.name}: deployment {selected.wanted.name} {has}, but this repository "
            f"may only use {', '.join(pools)}: name one of these, or add to the repository's pools "
            "in the chart's values."
        )


def _matches(pattern: str, function: str, name: str) -> bool:
    flow, _, own = pattern.rpartition("/")
    of_flow = not flow or _with_stars(flow).fullmatch(function) is not None
    return of_flow and _with_stars(own).fullmatch(name) is not None


def _with_stars(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


def repository_state(folder: Path) -> DesiredState:
    """Return the objects of the repository's state file, if it has one."""
    path = folder / STATE_FILE
    return load_repository(path) if path.exists() else DesiredState()


async def deploy(
    repository: Repository,
    created: Created,
    pools: Mapping[str, str],
    taken: Collection[str] = (),
    *,
    write: bool,
) -> list[tuple[Change, Entry]]:
    """Deploy what differs, as `prefect deploy` does; returns each change, and what to record of it.

    `pools` are the types of the work pools that may not be there yet, when nothing is written.
    Raises NameTakenError, and deploys nothing, when a deployment has a key of `taken`. Raises
    BootstrapError when two deployments have one name, or when Prefect does not deploy; what it said
    until then is printed. What it created before that is recorded all the same, also when this
    process is killed.
    """
    if not any(repository.files.values()):
        return []
    known = {
        entry.name: Known(
            id=entry.id, triggers=entry.triggers, ending=entry.ending, disabled=entry.disabled
        )
        for entry in created
        if entry.kind == DEPLOYMENT
    }
    exchange = Exchange(
        write=write,
        files=repository.files,
        tags=list(repository.tags),
        taken=[
            key.removeprefix(f"{DEPLOYMENT} ") for key in taken if key.startswith(f"{DEPLOYMENT} ")
        ],
        pools=dict(pools),
        known=known,
        release=created.release,
        source=repository.source,
    )
    own = {name: value for name, value in os.environ.items() if name not in repository.hidden}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "exchange.json"
        file.write_text(exchange.model_dump_json(), encoding="utf-8")
        done = None
        with anyio.move_on_after(DEPLOY_SECONDS):  # which ends the process
            done = await anyio.run_process(
                [
                    # Without the repository's folder on the path: it may have a calendar.py.
                    *(sys.executable, "-P", "-m", "prefect_hamilton.bootstrap.prefect_deploy"),
                    str(file),
                ],
                cwd=repository.folder,
                env=own | repository.environment,
                stderr=subprocess.STDOUT,
                check=False,
            )
        exchange = Exchange.model_validate_json(file.read_bytes())
    for announced in exchange.announced:
        created.drop(announced)  # what was created has a result
    for name, places in exchange.repeated.items():
        raise BootstrapError(
            f"{' and '.join(places)} are the same deployment, {name}: rename or remove one of them."
        )
    if exchange.refused:
        raise NameTakenError([f"{DEPLOYMENT} {name}" for name in exchange.refused])
    found = []
    for result in exchange.results:
        before = created.of_id(f"{DEPLOYMENT} {result.name}", result.id)
        entry = Entry(
            kind=DEPLOYMENT,
            name=result.name,
            id=result.id,
            source=repository.source,
            created=result.outcome == "created" or bool(before and before.created),
            triggers=result.triggers,
            disabled=result.disabled,
        )
        change = Change(
            result.outcome,
            DEPLOYMENT,
            result.name,
            differences=tuple(result.differences),
            parts=tuple(result.parts),
        )
        found.append((change, entry))
    if done is None or done.returncode != 0:
        for _, entry in found:
            created.put(entry)
    if done is None:
        raise BootstrapError(
            f"prefect deploy has not ended after {DEPLOY_SECONDS:g} s in the clone of "
            f"{repository.address}: mend the flow whose import, or the build step, takes so long."
        )
    if done.returncode != 0:
        typer.echo(done.stdout.decode(errors="replace"), err=True)
        raise BootstrapError(
            f"prefect deploy failed in the clone of {repository.address}, as it says above: mend "
            "prefect.yaml or the flow."
        )
    return found


def check_credential(repository: str, environment: Mapping[str, str]) -> None:
    """Refuse an address that holds a credential, and say so where a token will not be used.

    Such an address would be stored with each deployment and printed. Where its credential begins
    and ends cannot be determined, as people forget to percent-encode it.
    """
    if holds_credential(repository):
        raise BootstrapError(
            "FLOWS_REPOSITORY contains a credential, which would be stored with each deployment, "
            "where every user can read it: remove it from the address, and set GIT_ACCESS_TOKEN to "
            "the token (the chart's value is flows.gitCredential). Write an @ in the path as %40."
        )
    if environment.get("GIT_ACCESS_TOKEN") and not repository.lower().startswith("https://"):
        typer.echo(
            "GIT_ACCESS_TOKEN is not used: Prefect sends a token only to an https:// address, and "
            f"FLOWS_REPOSITORY is {repository}.",
            err=True,
        )


def holds_credential(repository: str) -> bool:
    """Whether the address names a user or, by SSH, whose user is no secret, a password."""
    if not (found := ADDRESS.fullmatch(repository)):
        return False
    scheme = (found["scheme"] or "ssh").lower()
    if scheme == "file":
        return False
    return ":" in found["before_host"] or scheme not in ("ssh", "git+ssh", "ssh+git")


def clone(flows: Flows, folder: Path, named: Mapping[str, str]) -> Path:
    """Clone at the branch or commit that `named` has; raises BootstrapError where that fails."""
    token = (flows.environment if flows.name else os.environ).get("GIT_ACCESS_TOKEN")

    def say(attempt: RetryCallState) -> None:
        """Print the reason for another attempt."""
        if attempt.outcome and (error := attempt.outcome.exception()):
            typer.echo(f"Trying again: {reason(error, flows)}", err=True)

    async def within_limit() -> None:
        with anyio.fail_after(CLONE_SECONDS):  # which ends git
            await pull.retry_with(before_sleep=say)(storage)

    try:
        storage = GitRepository(
            url=flows.address,
            credentials={"access_token": SecretStr(token)} if token else None,
            name="flows",
            branch=named.get("FLOWS_BRANCH"),
            commit_sha=named.get("FLOWS_COMMIT"),
            include_submodules=flows.submodules,
        )
        storage.set_base_path(folder)
        with environment({**SILENCE, **flows.environment}):
            asyncio.run(within_limit())
    except FAILURES as error:
        raise BootstrapError(reason(error, flows)) from error
    except TimeoutError as error:
        raise BootstrapError(
            f"Cannot clone {flows.address} at {flows.ref}: it takes more than {CLONE_SECONDS:g} s; "
            "find out whether the Git server answers."
        ) from error
    except ValueError as error:  # an address or a reference that Prefect does not pass on to git
        why = str(error).rstrip(".")
        raise BootstrapError(f"Cannot clone {flows.address} at {flows.ref}: {why}.") from error
    return storage.destination


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process: Prefect has no other way to give git some."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def reason(error: BaseException, flows: Flows) -> str:
    """Return why the repository cannot be cloned."""
    return pull_errors.explain_to_installer(error, flows.address, flows.ref, flows.name)


@retry(
    stop=stop_after_attempt(3),
    wait=wait_random_exponential(max=10),
    retry=retry_if_exception_type(FAILURES),
    reraise=True,
)
async def pull(storage: GitRepository) -> None:
    """Clone into an empty folder: Prefect takes what is left of a clone for the whole."""
    shutil.rmtree(storage.destination, ignore_errors=True)
    await storage.pull_code()
