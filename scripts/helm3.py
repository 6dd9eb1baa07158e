"""Build Helm 3, for the test that compares what it renders with what Helm 4 renders.

Usage: python -m scripts.helm3

Needs Go. The first time it takes about 5 minutes of processor time; then it is in .cache/helm-3.
"""

import os
import subprocess
import sys
from pathlib import Path

VERSION = "v3.22.0"
FOLDER = Path(__file__).parent.parent / ".cache" / "helm-3"
PROGRAM = FOLDER / "helm"


def main() -> None:
    """Build it unless it is there, and print where."""
    if not is_built():
        build()
    print(PROGRAM)


def is_built() -> bool:
    """Whether the program is there, in this version."""
    if not PROGRAM.exists():
        return False
    shown = subprocess.run(
        [PROGRAM, "version", "--template", "{{.Version}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return VERSION in shown.stdout


def build() -> None:
    """Fetch and compile it; exits with one line when there is no Go or that fails."""
    module = f"helm.sh/helm/v3/cmd/helm@{VERSION}"
    flags = f"-s -w -X helm.sh/helm/v3/internal/version.version={VERSION}"
    print(f"Building {module}; this takes some minutes.", file=sys.stderr)
    try:
        subprocess.run(
            ["go", "install", f"-ldflags={flags}", module],
            env=os.environ | {"GOBIN": str(FOLDER)},
            check=True,
        )
    except FileNotFoundError:
        sys.exit("go is not on PATH: install Go from https://go.dev.")
    except subprocess.CalledProcessError:
        sys.exit(f"{module} cannot be built; what go says is above.")


if __name__ == "__main__":
    main()
