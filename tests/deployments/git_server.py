"""What the tests of deployments share: git, a Git server's address, a command's environment."""

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

ROOT = Path(__file__).parents[2]
TOKEN = "token-of-the-test"


@dataclass
class GitServer:
    """Repositories below `repositories`, served at `url`; those in `private/` want the token."""

    url: str
    http_url: str
    """The same without TLS."""
    repositories: Path
    certificate: Path
    answers: Path
    """The status of each of the next answers, one a line; 200 is what git makes of it."""
    token: str = TOKEN

    def answer_next(self, *statuses: int) -> None:
        """Answer the next requests so, and those after them as usual."""
        self.answers.write_text("".join(f"{status}\n" for status in statuses))

    def publish(self, source: Path, name: str) -> str:
        """Push the folder's repository as `name` and return its address."""
        bare = self.repositories / f"{name}.git"
        git("clone", "--bare", "--quiet", str(source), str(bare))
        return f"{self.url}/{name}.git"


def git(*arguments: str, cwd: Path | None = None) -> str:
    """Run git with a test identity and return its output."""
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@retry(retry=retry_if_exception_type(OSError), stop=stop_after_delay(10), wait=wait_fixed(0.05))
def wait_for_port(port: int) -> None:
    """Return when something listens on the port of 127.0.0.1."""
    socket.create_connection(("127.0.0.1", port), timeout=1).close()


def prefect_environment(api_url: str, **extra: str) -> dict[str, str]:
    """Return the environment of a `prefect` command that talks to the test's server."""
    return {**os.environ, "PREFECT_API_URL": api_url, "NO_COLOR": "1", **extra}
