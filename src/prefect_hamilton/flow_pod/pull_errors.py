"""Why a deployment's pull steps failed, in one sentence for users of the flow run."""

import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise

from prefect._internal.urls import strip_auth_from_urls_in_text

UNREACHABLE = (
    r"returned error: (?:429|5\d\d)|Could not resolve host|name resolution|Connection refused"
    r"|Connection reset|Failed to connect|timed out|hung up|early EOF|unexpected disconnect"
)
# Pattern of git's output, cause, way out, and the chart's value to correct. The first match counts.
CAUSES = (
    (
        r"(?:could not read (?:Username|Password)|Authentication failed) for 'http://",
        "the Git server requires a credential, but Prefect sends a token only to an https:// "
        "address",
        "set the https:// address in the deployment's git_clone step and register the deployment "
        "again",
        "flows.repository",
    ),
    (
        r"could not read (?:Username|Password)|Authentication failed|Permission denied"
        r"|Host key verification failed|returned error: 40[13]",
        "the Git server rejects the credential, or requires one",
        "give the deployment's git_clone step a credential that can read the repository",
        "flows.gitCredential",
    ),
    (
        r"Remote branch (?P<ref>[0-9a-fA-F]{4,39}) not found",
        "it has no branch or tag {ref}, and a commit must be given as its full SHA of 40 "
        "characters",
        "correct the ref in the deployment's git_clone step and register the deployment again",
        "flows.ref",
    ),
    (
        r"Remote branch (?P<ref>\S+) not found",
        "it has no branch or tag {ref}",
        "correct the ref in the deployment's git_clone step and register the deployment again",
        "flows.ref",
    ),
    (
        r"not our ref|unadvertised object|reference is not a tree|bad object|couldn't find remote",
        "it has no commit {ref}",
        "correct the ref in the deployment's git_clone step and register the deployment again",
        "flows.ref",
    ),
    (
        r"SSL certificate|certificate verification",
        "the certificate of the Git server is not trusted",
        "set the variable GIT_SSL_CAINFO to a file with its certificate authority",
        "flows.env and bootstrap.env",
    ),
    (
        UNREACHABLE,
        "the Git server does not answer ({said})",
        "run the flow again when it does, or correct the address in the deployment's git_clone "
        "step",
        "flows.repository",
    ),
    (
        r"not found|not appear to be a git repository|no such repository|not exported"
        r"|Could not read from remote",
        "the repository does not exist, or the credential cannot read it",
        "correct the address in the deployment's git_clone step and register the deployment again",
        "flows.repository",
    ),
)


def explain(error: BaseException) -> str:
    """Return the sentence for a flow run, without credentials of a URL."""
    if (failed := git_failure(error)) is None:
        return _words(error)
    # Only `git clone` names the repository; what follows is `git fetch origin COMMIT`.
    words = [strip_auth_from_urls_in_text(str(word)) for word in failed.cmd]
    cloned = (word for before, word in pairwise(words) if before == "clone")
    repository = next(cloned, "the flow repository")
    cause, way_out, value = _diagnose(failed)
    advice = f"; {way_out} (chart value: {value})" if way_out else ""
    return f"Cannot clone {repository}: {cause}{advice}."


def explain_wait(error: BaseException) -> str:
    """Return only the cause, for the log message of a clone that is retried."""
    failed = git_failure(error)
    return _words(error) if failed is None else _diagnose(failed)[0]


def explain_to_installer(error: BaseException, repository: str, ref: str, name: str = "") -> str:
    """Return the sentence for the installer of the chart, without credentials of a URL.

    `name` is the key of the repository in flows.repositories, if it has one.
    """
    if (failed := git_failure(error)) is None:
        return _words(error)
    cause, _, value = _diagnose(failed)
    if name:
        own = value.replace("flows.repository", "flows.url")
        value = own if "env" in own else own.replace("flows.", f"flows.repositories.{name}.")
    advice = f"; correct {value} in the chart's values" if value else ""
    return f"Cannot clone {strip_auth_from_urls_in_text(repository)} at {ref}: {cause}{advice}."


def git_failure(error: BaseException) -> subprocess.CalledProcessError | None:
    """Return the failure of git behind the error, if there is one."""
    for each in _chain(error):
        if isinstance(each, subprocess.CalledProcessError) and each.cmd[:1] == ["git"]:
            return each
    return None


def is_unreachable(failed: subprocess.CalledProcessError) -> bool:
    """Whether git failed because the server did not answer, so that it may succeed later."""
    return re.search(UNREACHABLE, _stderr(failed)) is not None


def _diagnose(failed: subprocess.CalledProcessError) -> tuple[str, str, str]:
    """Return cause, way out and value; the last two are empty if git's output is unknown."""
    stderr = strip_auth_from_urls_in_text(_stderr(failed))
    said = (stderr.strip().splitlines() or ["no message"])[-1].removeprefix("fatal: ")
    for pattern, cause, way_out, value in CAUSES:
        if found := re.search(pattern, stderr):
            ref = found.groupdict().get("ref", strip_auth_from_urls_in_text(str(failed.cmd[-1])))
            return cause.format(ref=ref, said=said), way_out, value
    return f"git ended with {failed.returncode} ({said})", "", ""


def _words(error: BaseException) -> str:
    cause = f": {error.__cause__}" if error.__cause__ else ""
    return strip_auth_from_urls_in_text(f"{error}{cause}")


def _stderr(failed: subprocess.CalledProcessError) -> str:
    raw = failed.stderr or b""
    return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        # Prefect hides a command with a credential in it, but it is still the context.
        error = error.__cause__ or error.__context__
