"""`prefect worker` with this package's Kubernetes worker; options as there."""

import sys
import warnings

from prefect.cli import app
from prefect.plugins import load_prefect_collections

if __name__ == "__main__":
    # Prefect's own worker first: the last one of a type is taken.
    load_prefect_collections()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Type 'Worker' at .* has key 'kubernetes'")
        from prefect_hamilton.worker import worker as _worker  # noqa: F401
    from prefect_hamilton.worker import observer

    observer.install()
    sys.argv = ["prefect", "worker", *sys.argv[1:]]
    app()
