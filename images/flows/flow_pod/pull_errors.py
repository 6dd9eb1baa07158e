"""Why a deployment's pull steps failed, in one sentence for whoever reads the flow run."""

import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise

from prefect._internal.urls import strip_auth_from_urls_in_text

UNREACHABLE = (
    r"returned error: (?:429|5\d\d)|Could not resolve host|name resolution|Connection refused"
    r"|Connection reset|Failed to connect|timed out|hung up|early EOF|unexpected disconnect"
)
# What git says, with the cause and the way out. The first that matches counts.
CAUSES = (
    (
        r"could not read (?:Username|Password)|Authentication failed|Permission denied"
        r"|Host key verification failed|returned error: 40[13]",
        "the Git server refuses the credential, or the lack of one; give the deployment's "
        "git_clone step (chart: flows.gitCredential) one that may read the repository",
    ),
    (
        r"Remote branch (?P<ref>\S+) not found",
        "it has no branch or tag {ref}; name another in the deployment's git_clone step "
        "(chart: flows.ref) and register it again",
    ),
    (
        r"not our ref|unadvertised object|reference is not a tree|bad object|couldn't find remote",
        "it has no commit {ref}; name another in the deployment's git_clone step "
        "(chart: flows.ref) and register it again",
    ),
    (
        r"SSL certificate|certificate verification",
        "the certificate of the Git server is not trusted; name a file with its authority in "
        "the variable GIT_SSL_CAINFO",
    ),
    (
        UNREACHABLE,
        "the Git server does not answer ({said}); run the flow again when it does, or correct the "
        "address in the deployment's git_clone step (chart: flows.repository)",
    ),
    (
        r"not found|not appear to be a git repository|no such repository|not exported"
        r"|Could not read from remote",
        "there is no such repository, or it is hidden from this credential; correct the address "
        "in the deployment's git_clone step (chart: flows.repository) and register it again",
    ),
)


def explain(error: BaseException, repository: str = "the flow repository") -> str:
    """Return the sentence; no credential of a URL is in it.

    `repository` is what was to be cloned, for where git's command does not tell.
    """
    if (failed := git_failure(error)) is not None:
        return _explain_git(failed, repository)
    cause = f": {error.__cause__}" if error.__cause__ else ""
    return strip_auth_from_urls_in_text(f"{error}{cause}")


def git_failure(error: BaseException) -> subprocess.CalledProcessError | None:
    """Return the failure of git behind the error, if there is one."""
    for each in _chain(error):
        if isinstance(each, subprocess.CalledProcessError) and each.cmd[:1] == ["git"]:
            return each
    return None


def is_unreachable(failed: subprocess.CalledProcessError) -> bool:
    """Whether git failed because the server did not answer, so that it may succeed later."""
    return re.search(UNREACHABLE, _stderr(failed)) is not None


def _explain_git(failed: subprocess.CalledProcessError, repository: str) -> str:
    stderr = strip_auth_from_urls_in_text(_stderr(failed))
    words = [strip_auth_from_urls_in_text(str(word)) for word in failed.cmd]
    # Only `git clone` names the repository; what follows is `git fetch origin COMMIT`.
    cloned = (word for before, word in pairwise(words) if before == "clone")
    repository = next(cloned, strip_auth_from_urls_in_text(repository))
    said = (stderr.strip().splitlines() or ["it said nothing"])[-1].removeprefix("fatal: ")
    for pattern, reason in CAUSES:
        if found := re.search(pattern, stderr):
            ref = found.groupdict().get("ref", words[-1])
            return f"Cannot clone {repository}: {reason.format(ref=ref, said=said)}."
    return f"Cannot clone {repository}: git ended with {failed.returncode} ({said})."


def _stderr(failed: subprocess.CalledProcessError) -> str:
    raw = failed.stderr or b""
    return raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        # Prefect hides a command with a credential in it, but it is still the context.
        error = error.__cause__ or error.__context__
