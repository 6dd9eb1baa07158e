"""`prefect worker` with this package's worker of the type: `start --type process`, or Kubernetes.

Other options are as there. With `--no-create-pool-if-not-found`, it starts when the pool exists.
"""

# A process that is forked imports this module, too: nothing here may be slow.
import argparse
import importlib
import os
import signal
import sys
import warnings


def main() -> None:
    """Run the command."""
    # The health check is at every address, of IPv4 and of IPv6: Prefect's default is 0.0.0.0.
    os.environ.setdefault("PREFECT_WORKER_WEBSERVER_HOST", "")
    from prefect.cli import app
    from prefect.plugins import load_prefect_collections

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-t", "--type")
    parser.add_argument("-p", "--pool")
    parser.add_argument("--no-create-pool-if-not-found", dest="waits", action="store_true")
    options, _ = parser.parse_known_args()
    is_process = options.type == "process"
    # Prefect's own worker first: the last one of a type is taken.
    load_prefect_collections()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Type 'Worker' at .* has key")
        importlib.import_module(f"prefect_hamilton.worker.{'process' if is_process else 'worker'}")
    if not is_process:
        from prefect_hamilton.worker import observer

        observer.install()
    # Only now, so that what is slow to import is there when the pool is.
    if options.waits and options.pool:
        from prefect_hamilton.worker import work_pool

        work_pool.await_creation(options.pool)
    # At SIGTERM, Prefect's worker sends itself SIGINT, which a script's background job ignores.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["prefect", "worker", *sys.argv[1:]]
    app()


if __name__ == "__main__":
    main()
