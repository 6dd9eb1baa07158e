"""`prefect worker` with this package's worker of the type: `start --type process`, or Kubernetes.

Other options are as there.
"""

# A process that is forked imports this module, too: nothing here may be slow.
import importlib
import signal
import sys
import warnings


def main() -> None:
    """Run the command."""
    from prefect.cli import app
    from prefect.plugins import load_prefect_collections

    words = " ".join(sys.argv).replace("=", " ")
    is_process = "--type process" in words or "-t process" in words
    # Prefect's own worker first: the last one of a type is taken.
    load_prefect_collections()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Type 'Worker' at .* has key")
        importlib.import_module(f"prefect_hamilton.worker.{'process' if is_process else 'worker'}")
    if not is_process:
        from prefect_hamilton.worker import observer

        observer.install()
    # At SIGTERM, Prefect's worker sends itself SIGINT, which a script's background job ignores.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["prefect", "worker", *sys.argv[1:]]
    app()


if __name__ == "__main__":
    main()
