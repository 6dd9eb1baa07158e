"""The repositories of a release with several, and their registration one after the other."""

import os
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Protocol

import anyio
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from prefect_hamilton.bootstrap.created import FILES, NAMED, Created
from prefect_hamilton.bootstrap.desired_state import read_file
from prefect_hamilton.bootstrap.environment import FromEnvironment
from prefect_hamilton.bootstrap.errors import BootstrapError
from prefect_hamilton.bootstrap.register_deployments import (
    Flows,
    NameTakenError,
    Repository,
    holds_credential,
)


def _below(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("must be a path below the repository's folder, without ..")
    return path


Below = Annotated[str, AfterValidator(_below)]


class Credential(BaseModel):
    """The Secret with the Git credential of a repository, which may not be there yet.

    `folder` is where its files are; a token is in a variable of `environment` instead.
    """

    model_config = ConfigDict(extra="forbid")

    secret: str
    key: str
    folder: Path | None = None


class Settings(BaseModel):
    """A repository in the file: an entry of the chart's flows.repositories."""

    model_config = ConfigDict(extra="forbid")

    url: str
    ref: str = "main"
    path: Below = "."
    prefect_files: list[Below] = Field(default=["prefect.yaml"], min_length=1)
    deployments: list[str] = Field(default=["*"], min_length=1)
    submodules: bool = False
    pools: list[str] = []
    tags: list[str] = []
    prune: bool = True
    environment: dict[str, FromEnvironment | str] = {}
    """Variables of git and prefect.yaml, such as GIT_ACCESS_TOKEN and FLOWS_ACCESS_TOKEN."""
    credential: Credential | None = None

    def variables(self) -> dict[str, str]:
        """Return what `git` and prefect.yaml get; leaves out what is not set."""
        given = {
            name: value.resolve(os.environ) if isinstance(value, FromEnvironment) else value
            for name, value in self.environment.items()
        }
        own = {"FLOWS_REPOSITORY": self.url, "FLOWS_REF": self.ref, "FLOWS_PATH": self.path}
        if self.submodules:
            own["FLOWS_SUBMODULES"] = "true"
        return own | {name: value for name, value in given.items() if value is not None}

    def recorded(self) -> dict[str, Any]:
        """Return the settings for the record: without what is only in the bootstrap's pod."""
        environment = {
            name: value
            for name, value in self.environment.items()
            if isinstance(value, str) and not name.startswith("GIT_")
        }
        settings = self.model_dump(mode="json", exclude={"credential"})
        return settings | {"environment": environment}

    def missing(self) -> str:
        """Return what to do about a credential that this process does not have, if it has none."""
        if self.credential is None:
            return ""
        secret, key, folder = self.credential.secret, self.credential.key, self.credential.folder
        absent = [
            f"{value.from_env} is not set"
            for value in self.environment.values()
            if isinstance(value, FromEnvironment) and value.resolve(os.environ) is None
        ]
        if folder and not (folder / key).exists():
            absent.append(f"{folder / key} does not exist")
        if not absent:
            return ""
        return (
            f"{absent[0]}: create the Secret {secret} with the key {key} in the namespace of the "
            "release."
        )

    def flows(self, name: str, hidden: frozenset[str] = frozenset()) -> Flows:
        """Return the repository with these settings."""
        return Flows(
            address=self.url,
            ref=self.ref,
            names=tuple(self.deployments),
            name=name,
            path=self.path,
            prefect_files=tuple(self.prefect_files),
            submodules=self.submodules,
            pools=tuple(self.pools),
            tags=tuple(self.tags),
            prune=self.prune,
            environment=self.variables(),
            missing=self.missing(),
            hidden=hidden,
            # An address with a credential is refused, and must not be in the record.
            recorded={} if holds_credential(self.url) else self.recorded(),
        )


_FILE = TypeAdapter(dict[str, Settings])


def load_repositories(path: Path) -> list[Flows]:
    """Return the repositories of a file, by name. Raises BootstrapError naming what is wrong."""
    try:
        entries = _FILE.validate_python(read_file(path))
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BootstrapError(f"{path}: {place}: {first['msg']}.") from error
    hidden = frozenset(
        value.from_env
        for each in entries.values()
        for value in each.environment.values()
        if isinstance(value, FromEnvironment)
    )
    return [each.flows(name, hidden) for name, each in sorted(entries.items())]


@dataclass(frozen=True)
class Recorded:
    """A repository of a release, with the settings that the release's last bootstrap had."""

    name: str
    checkout: Path | None = None

    def flows(self, created: Created) -> Flows:
        """Return the repository; a private one is cloned with GIT_ACCESS_TOKEN.

        Raises BootstrapError if the record does not have it.
        """
        if self.name not in created.repositories:
            names = ", ".join(sorted(created.repositories)) or "none"
            raise BootstrapError(
                f"--repository {self.name}: the record of --release has no such repository, only "
                f"{names}: correct the name, or let the bootstrap of the release run first."
            )
        try:
            settings = Settings.model_validate(created.repositories[self.name])
        except ValidationError as error:
            raise BootstrapError(
                "The record of the release has settings that are not known here: use the version "
                "of the release's bootstrap."
            ) from error
        flows = settings.flows(self.name)
        token = os.environ.get("GIT_ACCESS_TOKEN")
        own = {"GIT_ACCESS_TOKEN": token} if token else {}
        return replace(flows, checkout=self.checkout, environment={**flows.environment, **own})


def choose(repositories: list[Flows], name: str, checkout: Path | None) -> list[Flows]:
    """Return the repository with this name, or all if it is empty; one may be a checkout.

    Raises BootstrapError.
    """
    names = ", ".join(each.name for each in repositories)
    chosen = [each for each in repositories if name in ("", each.name)]
    if not chosen and name:
        raise BootstrapError(f"--repository {name}: there is no such repository, only {names}.")
    if checkout is None:
        return chosen
    if len(chosen) != 1:
        raise BootstrapError(f"--checkout needs --repository: name one of {names}.")
    return [replace(chosen[0], checkout=checkout)]


class Reconciles(Protocol):
    """What applies a clone: `named` are the keys of the objects so far."""

    named: set[str]

    async def bring_about_repository(self, repository: Repository, taken: Collection[str]) -> None:
        """Apply it. Raises NameTakenError if it deploys what is taken."""


class Registration:
    """Registers repositories, so that the failure of one does not keep the others from it.

    `failed` is why, by source; automations of the release's own files may fail as well. A
    repository without a name is the only one: its failure is raised.
    """

    def __init__(self, repositories: Sequence[Flows], created: Created, *, alone: bool) -> None:
        self.failed: dict[str, list[str]] = {}
        self._repositories = repositories
        self._created = created
        self._alone = alone
        self._owners: dict[str, str] = {}

    def reserve(self, keys: Collection[str]) -> None:
        """Note what the files of the release name: no repository may name the same."""
        self._owners |= dict.fromkeys(keys, FILES)

    async def clones(self, folder: Path) -> list[Repository]:
        """Return the clones, made below the folder; notes which repositories cannot be cloned."""
        found = []
        for flows in self._repositories:
            try:
                below = folder / (flows.name or "flows")
                below.mkdir()
                found.append(await anyio.to_thread.run_sync(flows.repository, below))
            except BootstrapError as error:
                self.fail(flows.source, error)
        return found

    def fail(self, source: str, error: BootstrapError) -> None:
        """Note why a source has failed; raises the error of a repository without a name."""
        if source != FILES and not source.startswith(NAMED):
            raise error
        self.failed.setdefault(source, []).append(str(error))

    async def register(self, clones: Sequence[Repository], reconciler: Reconciles) -> None:
        """Register the clones. One that names what another had waits until that is registered."""
        waiting = deque(clones)
        deferred = 0
        while waiting:
            clone = waiting.popleft()
            owners = self._recorded(clone, waiting) | self._owners
            try:
                if taken := sorted(clone.keys() & owners.keys()):
                    raise NameTakenError(taken)
                before = set(reconciler.named)
                await reconciler.bring_about_repository(clone, owners.keys())
                self._owners |= dict.fromkeys(reconciler.named - before, clone.source)
            except NameTakenError as error:
                owner = owners[error.keys[0]]
                if owner in [each.source for each in waiting] and deferred < len(waiting):
                    deferred += 1
                    waiting.append(clone)
                    continue
                self.fail(clone.source, BootstrapError(_is_taken(error.keys[0], owner)))
            except BootstrapError as error:
                self.fail(clone.source, error)
            deferred = 0

    def _recorded(self, clone: Repository, waiting: Collection[Repository]) -> dict[str, str]:
        """Return what the record has of others, with their sources.

        These are repositories that are not registered yet, and the files of the release if these
        are not given.
        """
        absent = {*self.failed, *(each.source for each in waiting)}
        given = {each.source for each in self._repositories}
        others = [entry for entry in self._created if entry.source != clone.source]
        found = {
            entry.key: entry.source
            for entry in others
            if clone.source.startswith(NAMED)
            and entry.source.startswith(NAMED)
            and (entry.source in absent or (self._alone and entry.source not in given))
        }
        if self._alone:
            found |= {entry.key: FILES for entry in others if entry.source == FILES}
        return found

    def lines(self) -> list[str]:
        """Return a line for each failure, which names its repository."""
        return [
            error if source == FILES else f"{source}: {error}"
            for source, errors in sorted(self.failed.items())
            for error in errors
        ]

    def succeeded(self) -> Iterator[str]:
        """Yield the sources of the repositories that were registered."""
        yield from (each.source for each in self._repositories if each.source not in self.failed)


def _is_taken(key: str, owner: str) -> str:
    if owner == FILES:
        return (
            f"{key} belongs to the release itself, whose state or alerts define it: rename or "
            "remove it in the repository."
        )
    return f"{key} is also defined by {owner}: rename or remove it in one of them."
