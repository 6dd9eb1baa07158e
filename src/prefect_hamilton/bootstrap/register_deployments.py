"""Clones the flows repository as a flow run does, and registers its deployments."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import anyio
import typer
from prefect.cli.deploy._models import DeploymentConfig
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
from prefect_hamilton.bootstrap.created import Created, Entry
from prefect_hamilton.bootstrap.desired_state import DesiredState, load_repository, read_file
from prefect_hamilton.bootstrap.errors import BootstrapError
from prefect_hamilton.bootstrap.objects import DEPLOYMENT
from prefect_hamilton.bootstrap.prefect_deploy import Exchange, Known
from prefect_hamilton.flow_pod import pull_errors

STATE_FILE = "prefect-state.yaml"
"""The file beside prefect.yaml with the objects that its flows need on the server."""

COMMIT = re.compile("(?:[0-9a-f]{40}|[0-9a-f]{64})", re.IGNORECASE)
"""A full SHA, because a Git server does not accept a shorter one."""

ADDRESS = re.compile(
    r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?(?P<before_host>[^@]*)@.*", re.IGNORECASE | re.DOTALL
)
"""A URL, or user@host:path as SSH has it, with an @ somewhere."""

FAILURES = (RuntimeError, subprocess.CalledProcessError)
"""Messages of `git clone`, in Prefect's words, and of `git fetch` for a commit."""


@dataclass(frozen=True)
class Repository:
    """A clone of a repository of flows, and which of its deployments are wanted."""

    address: str
    checkout: Path
    names: list[str]
    """Of deployments in its prefect.yaml, as `prefect deploy --name` takes them."""
    environment: dict[str, str]
    """What prefect.yaml gets besides the environment of this process."""
    state: DesiredState


@dataclass(frozen=True)
class Flows:
    """The flows repository of the environment, and which of its deployments are wanted."""

    address: str
    ref: str
    names: list[str]
    """Names of deployments, or patterns."""
    checkout: Path | None
    """A clone that exists; None: one is made."""

    @classmethod
    def from_environment(cls, names: list[str], checkout: Path | None) -> Self:
        """Read FLOWS_REPOSITORY and FLOWS_REF: a branch, tag or commit.

        Raises BootstrapError when one of them is missing, or the address contains a credential.
        """
        for name in ("FLOWS_REPOSITORY", "FLOWS_REF"):
            if not os.environ.get(name):
                raise BootstrapError(f"{name} is not set: it must name what to clone.")
        address, ref = os.environ["FLOWS_REPOSITORY"], os.environ["FLOWS_REF"]
        check_credential(address)
        if os.environ.get("FLOWS_SUBMODULES") not in (None, "", "true"):
            # git_clone treats any text except the empty one as true.
            raise BootstrapError("FLOWS_SUBMODULES must be true or unset.")
        return cls(address, ref, names, checkout)

    def repository(self, folder: Path) -> Repository:
        """Return the checkout, or a new one below an empty folder.

        Reads GIT_ACCESS_TOKEN for a private repository, and FLOWS_SUBMODULES. prefect.yaml gets the
        reference as FLOWS_COMMIT or FLOWS_BRANCH. Raises BootstrapError when the repository cannot
        be cloned or has no prefect.yaml.
        """
        is_commit = COMMIT.fullmatch(self.ref)
        named = {"FLOWS_COMMIT": self.ref.lower()} if is_commit else {"FLOWS_BRANCH": self.ref}
        checkout = self.checkout or clone(self.address, folder, named)
        if self.checkout is None:
            typer.echo(f"Cloned {self.address} at {self.ref}.", err=True)
        if not (checkout / "prefect.yaml").exists():
            where = self.checkout or f"{self.address} at {self.ref}"
            raise BootstrapError(f"{where} has no prefect.yaml.")
        names = selected(checkout / "prefect.yaml", self.names)
        return Repository(self.address, checkout, names, named, repository_state(checkout))


def selected(file: Path, patterns: list[str]) -> list[str]:
    """Return the deployments of a prefect.yaml that a pattern matches, each once.

    A pattern is `name` or `flow/name`, with * for any characters. Prefect passes over a deployment
    with a misspelt key, and over a name that matches nothing: here, what it passes over would be
    deleted. Raises BootstrapError for both.
    """
    content = read_file(file)
    deployments = content.get("deployments") if isinstance(content, dict) else None
    if not isinstance(deployments, list):
        raise BootstrapError(f"{file.name} has no list of deployments: add the key deployments.")
    found: dict[tuple[str, str], None] = {}
    for number, deployment in enumerate(deployments):
        for key in ("name", "entrypoint"):
            if not isinstance(deployment, dict) or not isinstance(deployment.get(key), str):
                raise BootstrapError(f"{file.name}: deployments.{number} has no {key}: add it.")
        name = deployment["name"]
        for key in deployment.keys() - DeploymentConfig.model_fields.keys():
            raise BootstrapError(
                f"{file.name}: deployment {name}: unknown key {key}: correct or remove it."
            )
        function = deployment["entrypoint"].rpartition(":")[2].replace("_", "-")
        if any(_matches(pattern, function, name) for pattern in patterns):
            found[function, name] = None
    all_names = [deployment["name"] for deployment in deployments]
    for pattern in patterns:
        if "*" not in pattern and not any(_matches(pattern, *each) for each in found):
            raise BootstrapError(
                f"{file.name} has no deployment {pattern}: correct the name (the chart's value is "
                "flows.deployments)."
            )
    return [
        name if all_names.count(name) == 1 else f"{function}/{name}" for function, name in found
    ]


def _matches(pattern: str, function: str, name: str) -> bool:
    flow, _, own = pattern.rpartition("/")
    of_flow = not flow or _with_stars(flow).fullmatch(function) is not None
    return of_flow and _with_stars(own).fullmatch(name) is not None


def _with_stars(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


def repository_state(checkout: Path) -> DesiredState:
    """Return the objects of the repository's state file, if it has one."""
    path = checkout / STATE_FILE
    return load_repository(path) if path.exists() else DesiredState()


async def deploy(
    repository: Repository, created: Created, pools: Mapping[str, str], *, write: bool
) -> list[tuple[Change, Entry]]:
    """Deploy what differs, as `prefect deploy` does; returns each change, and what to record of it.

    `pools` are the types of the work pools that may not be there yet, when nothing is written.
    Raises BootstrapError when Prefect does not deploy; what it said until then is printed. What it
    created before that is recorded all the same.
    """
    if not repository.names:
        return []
    known = {
        entry.name: Known(id=entry.id, triggers=entry.triggers, ending=entry.ending)
        for entry in created
        if entry.kind == DEPLOYMENT
    }
    exchange = Exchange(write=write, pools=dict(pools), known=known)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "exchange.json"
        file.write_text(exchange.model_dump_json(), encoding="utf-8")
        done = await anyio.run_process(
            [
                # Without the repository's folder on the path: it may have a calendar.py.
                *(sys.executable, "-P", "-m", "prefect_hamilton.bootstrap.prefect_deploy"),
                str(file),
                *repository.names,
            ],
            cwd=repository.checkout,
            env=os.environ | repository.environment,
            stderr=subprocess.STDOUT,
            check=False,
        )
        results = Exchange.model_validate_json(file.read_bytes()).results
    found = []
    for result in results:
        before = created.of_id(f"{DEPLOYMENT} {result.name}", result.id)
        entry = Entry(
            kind=DEPLOYMENT,
            name=result.name,
            id=result.id,
            source=repository.address,
            created=result.outcome == "created" or bool(before and before.created),
            triggers=result.triggers,
        )
        change = Change(
            result.outcome,
            DEPLOYMENT,
            result.name,
            differences=tuple(result.differences),
            parts=tuple(result.parts),
        )
        found.append((change, entry))
    if done.returncode != 0:
        for _, entry in found:
            created.put(entry)
        typer.echo(done.stdout.decode(errors="replace"), err=True)
        raise BootstrapError(
            f"prefect deploy failed in the clone of {repository.address}, as it says above: mend "
            "prefect.yaml or the flow."
        )
    return found


def check_credential(repository: str) -> None:
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
    if os.environ.get("GIT_ACCESS_TOKEN") and not repository.lower().startswith("https://"):
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


def clone(repository: str, folder: Path, named: Mapping[str, str]) -> Path:
    """Clone at the branch or commit that `named` has; raises BootstrapError where that fails."""
    token = os.environ.get("GIT_ACCESS_TOKEN")
    try:
        storage = GitRepository(
            url=repository,
            credentials={"access_token": SecretStr(token)} if token else None,
            name="flows",
            branch=named.get("FLOWS_BRANCH"),
            commit_sha=named.get("FLOWS_COMMIT"),
            include_submodules=bool(os.environ.get("FLOWS_SUBMODULES")),
        )
        storage.set_base_path(folder)
        asyncio.run(pull(storage))
    except FAILURES as error:
        raise BootstrapError(reason(error)) from error
    except ValueError as error:  # an address or a reference that Prefect does not pass on to git
        ref = os.environ["FLOWS_REF"]
        why = str(error).rstrip(".")
        raise BootstrapError(f"Cannot clone {repository} at {ref}: {why}.") from error
    return storage.destination


def reason(error: BaseException) -> str:
    """Return why the repository cannot be cloned."""
    repository, ref = os.environ["FLOWS_REPOSITORY"], os.environ["FLOWS_REF"]
    return pull_errors.explain_to_installer(error, repository, ref)


def say(attempt: RetryCallState) -> None:
    """Print the reason for another attempt."""
    if attempt.outcome and (error := attempt.outcome.exception()):
        typer.echo(f"Trying again: {reason(error)}", err=True)


@retry(
    stop=stop_after_attempt(3),
    wait=wait_random_exponential(max=10),
    retry=retry_if_exception_type(FAILURES),
    before_sleep=say,
    reraise=True,
)
async def pull(storage: GitRepository) -> None:
    """Clone into an empty folder: Prefect takes what is left of a clone for the whole."""
    shutil.rmtree(storage.destination, ignore_errors=True)
    await storage.pull_code()
