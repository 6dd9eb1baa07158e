"""Clone the flow repository and register its deployments.

Usage: register_deployments.py NAME...: names of deployments in prefect.yaml, or patterns.
Reads FLOWS_REPOSITORY, FLOWS_REF (branch, tag or commit), and GIT_ACCESS_TOKEN for a private
repository. prefect.yaml gets the reference as FLOWS_COMMIT or FLOWS_BRANCH.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from prefect._internal.urls import strip_auth_from_urls_in_text
from prefect.runner.storage import GitRepository
from pydantic import SecretStr
from tenacity import (
    RetryCallState,
    retry,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

FAILURES = (RuntimeError, subprocess.CalledProcessError)
"""Of `git clone`, which Prefect words, and of `git fetch` for a commit."""


def main(names: list[str]) -> None:
    """Clone as a flow run does, then deploy as a person does."""
    repository = os.environ["FLOWS_REPOSITORY"]
    ref = os.environ["FLOWS_REF"]
    is_commit = re.fullmatch("[0-9a-f]{40}", ref) is not None
    os.environ["FLOWS_COMMIT" if is_commit else "FLOWS_BRANCH"] = ref
    with tempfile.TemporaryDirectory() as folder:
        checkout = clone(repository, Path(folder))
        print(f"Cloned {repository} at {ref}.", flush=True)
        if not (checkout / "prefect.yaml").exists():
            sys.exit(f"{repository} at {ref} has no prefect.yaml.")
        command = ["prefect", "--no-prompt", "deploy"]
        for name in names:
            command += ["--name", name]
        sys.exit(subprocess.run(command, cwd=checkout, check=False).returncode)


def clone(repository: str, folder: Path) -> Path:
    """Clone at the wanted branch or commit; ends with one line where that fails."""
    token = os.environ.get("GIT_ACCESS_TOKEN")
    storage = GitRepository(
        url=repository,
        credentials={"access_token": SecretStr(token)} if token else None,
        name="flows",
        branch=os.environ.get("FLOWS_BRANCH"),
        commit_sha=os.environ.get("FLOWS_COMMIT"),
    )
    storage.set_base_path(folder)
    try:
        asyncio.run(pull(storage))
    except FAILURES as error:
        ref = os.environ["FLOWS_REF"]
        sys.exit(f"{repository} at {ref} cannot be cloned: {reason(error)}")
    return storage.destination


def say(attempt: RetryCallState) -> None:
    """Tell why it is tried again."""
    if attempt.outcome and (error := attempt.outcome.exception()):
        print(f"Trying again: {reason(error)}", flush=True)


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


def reason(error: BaseException) -> str:
    """Return the last thing that git said, without a credential."""
    if isinstance(error, subprocess.CalledProcessError):
        said = strip_auth_from_urls_in_text(error.stderr.decode(errors="replace"))
        return (said.strip().splitlines() or [f"git ended with {error.returncode}"])[-1]
    return str(error)


if __name__ == "__main__":
    main(sys.argv[1:])
