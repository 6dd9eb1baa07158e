"""Bring the servers to the desired state, and register the deployments of a repository."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from prefect_hamilton.bootstrap import alerts_test, desired_state
from prefect_hamilton.bootstrap.apply import Applied, Options, apply
from prefect_hamilton.bootstrap.changes import Change, counts
from prefect_hamilton.bootstrap.errors import BootstrapError
from prefect_hamilton.bootstrap.record import Record
from prefect_hamilton.bootstrap.register_deployments import Flows
from prefect_hamilton.bootstrap.repositories import Recorded, choose, load_repositories
from prefect_hamilton.logs import lines

CHANGES = 2
"""Exit status of `plan` if anything would change."""


class Commands(TyperGroup):
    """Commands that end with status 1 after a usage error, as after any other: 2 is of `plan`."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command that the arguments name, and exit."""
        try:
            return super().main(*args, **kwargs)
        except SystemExit as ended:
            if ended.code and not isinstance(ended.__context__, typer.Exit):
                raise SystemExit(1) from ended
            raise


app = typer.Typer(
    cls=Commands, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True
)

alerts = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True)
app.add_typer(alerts, name="alerts")


@alerts.callback()
def alerts_main() -> None:
    """Alerts that the server sends."""


@app.callback()
def main() -> None:
    """Bring a Prefect server and a Hamilton UI to the desired state."""


File = Annotated[Path, typer.Option(help="The desired state (YAML).", show_default="the package's")]
Add = Annotated[
    list[Path] | None,
    typer.Option(help="A file that adds to it; its entries replace those of the same name."),
]
RepositoryOnly = Annotated[
    bool,
    typer.Option(
        "--repository-only",
        help="Leave out the files: only FLOWS_REPOSITORY, or the repositories, are desired.",
    ),
]
Names = Annotated[
    list[str] | None,
    typer.Option(
        "--deployment",
        help="A deployment in the prefect.yaml of FLOWS_REPOSITORY: its name or a pattern.",
    ),
]
Checkout = Annotated[
    Path | None,
    typer.Option(
        help="A folder with FLOWS_REPOSITORY at FLOWS_REF, which is otherwise cloned.",
        exists=True,
        file_okay=False,
    ),
]
Repositories = Annotated[
    Path | None,
    typer.Option(
        help="A file with several repositories of flows (YAML), in place of FLOWS_REPOSITORY.",
        exists=True,
        dir_okay=False,
    ),
]
RepositoryName = Annotated[
    str,
    typer.Option(
        "--repository",
        help="With --repository-only: the name of the one repository in the chart's "
        "flows.repositories. Its settings are those in --repositories, or else in the record of "
        "--release.",
    ),
]
RecordFile = Annotated[
    Path | None,
    typer.Option(help="A file that records what was written: later changes of users are kept."),
]
Release = Annotated[
    str | None,
    typer.Option(
        envvar="BOOTSTRAP_RELEASE",
        help="Name of the record, on the server, of the objects that were created: those that the "
        "files no longer name are deleted. Without it, nothing is deleted.",
    ),
]
Prune = Annotated[bool, typer.Option(help="Delete these objects.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for each server to answer.", min=0)]


@app.command("apply")
def apply_command(
    file: File = desired_state.FILE,
    add: Add = None,
    repository_only: RepositoryOnly = False,
    deployment: Names = None,
    checkout: Checkout = None,
    repositories: Repositories = None,
    repository: RepositoryName = "",
    record: RecordFile = None,
    release: Release = None,
    prune: Prune = True,
    timeout: Timeout = 60.0,
) -> None:
    """Apply the desired state. Applying it again changes nothing.

    The Prefect server is the one at PREFECT_API_URL (with PREFECT_API_AUTH_STRING if it requires a
    password), the Hamilton UI the one at HAMILTON_API_URL (with HAMILTON_API_KEY). With
    --deployment, the desired state includes prefect.yaml and prefect-state.yaml of FLOWS_REPOSITORY
    at FLOWS_REF.
    """
    files = [] if repository_only else [file, *(add or [])]
    options = Options(timeout=timeout, release=release, prune=prune)
    applied = run(
        files,
        lambda: wanted(repository_only, deployment, checkout, repositories, repository, release),
        record,
        options,
        report,
    )
    typer.echo(f"Bootstrap: {counts(applied.changes)}.")
    fail_if(applied.failures)


@app.command("plan")
def plan_command(
    file: File = desired_state.FILE,
    add: Add = None,
    repository_only: RepositoryOnly = False,
    deployment: Names = None,
    checkout: Checkout = None,
    repositories: Repositories = None,
    repository: RepositoryName = "",
    record: RecordFile = None,
    release: Release = None,
    prune: Prune = True,
    timeout: Timeout = 60.0,
) -> None:
    """Print what apply would change, and write nothing. Values that may be secret are not printed.

    The exit status is 0 if nothing would change, 2 if anything would, and 1 after any error, also
    of an option.
    """
    files = [] if repository_only else [file, *(add or [])]
    options = Options(timeout=timeout, release=release, prune=prune, write=False)
    applied = run(
        files,
        lambda: wanted(repository_only, deployment, checkout, repositories, repository, release),
        record,
        options,
        lambda change: None,
    )
    lines = [line for change in applied.changes for line in change.diff()]
    for line in lines:
        typer.echo(line)
    typer.echo(f"Plan: {counts(applied.changes)}.")
    fail_if(applied.failures)
    if lines:
        raise typer.Exit(CHANGES)


@alerts.command("test")
def alerts_test_command(
    release: Annotated[
        str | None,
        typer.Option(
            envvar="BOOTSTRAP_RELEASE",
            help="The release whose channels are tested, as for apply. Not needed if only one "
            "release has alerts on the server.",
        ),
    ] = None,
    timeout: Timeout = 60.0,
) -> None:
    """Let the server send one message through each channel; exit with status 1 if one failed.

    The Prefect server is the one at PREFECT_API_URL, as for apply.
    """
    try:
        outcomes = asyncio.run(alerts_test.send(timeout, release))
    except BootstrapError as error:
        fail(str(error))
    for outcome in outcomes:
        typer.echo(outcome.line())
    if not all(outcome.arrived for outcome in outcomes):
        raise typer.Exit(1)


def wanted(
    repository_only: bool,
    deployments: list[str] | None,
    checkout: Path | None,
    file: Path | None,
    name: str,
    release: str | None,
) -> list[Flows | Recorded]:
    """Return the repositories that the options name. Raises BootstrapError."""
    if name and not repository_only:
        raise BootstrapError("--repository needs --repository-only.")
    if file is not None:
        if deployments:
            raise BootstrapError(f"--deployment is for FLOWS_REPOSITORY: name them in {file}.")
        return [*choose(load_repositories(file), name, checkout)]
    if name and deployments:
        raise BootstrapError(
            f"--deployment is for FLOWS_REPOSITORY: the record has those of {name}."
        )
    if name and not release:
        raise BootstrapError(
            f"--repository {name} needs its settings: name the release whose record has them in "
            "--release, or a file in --repositories."
        )
    if name:
        return [Recorded(name, checkout)]
    if deployments:
        return [Flows.from_environment(deployments, checkout)]
    if repository_only:
        raise BootstrapError("--repository-only needs --deployment: name the deployments.")
    return []


def run(
    files: list[Path],
    repositories: Callable[[], list[Flows | Recorded]],
    record: Path | None,
    options: Options,
    report: Callable[[Change], None],
) -> Applied:
    """Apply the files and the deployments; exits with status 1 when that fails."""
    try:
        state = desired_state.load(files, options.release) if files else None
        written = Record(record) if record else None
        return asyncio.run(
            apply(
                state,
                report=report,
                options=options,
                record=written,
                repositories=repositories(),
            )
        )
    except BootstrapError as error:
        fail(str(error))


def fail_if(failures: list[str]) -> None:
    """Print a line for each repository that failed, and exit with status 1 if one has."""
    if failures:
        fail(*failures)


def report(change: Change) -> None:
    """Print a line for an object."""
    typer.echo(f"  {change.line()}")


def fail(*errors: str) -> NoReturn:
    """Print each error and exit with status 1."""
    for error in errors:
        typer.secho(f"bootstrap: {error}", fg=typer.colors.RED, err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    with lines("prefect_hamilton.bootstrap"):
        app(prog_name="python -m prefect_hamilton.bootstrap")
