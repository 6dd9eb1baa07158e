"""The engine in a new interpreter: a pull step may have changed the packages that it imports."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    from prefect_hamilton import extensions, traces
    from prefect_hamilton.flow_pod import _prefect, attempt, outages

    # As `python -m prefect.engine` has it.
    sys.path.insert(0, str(Path.cwd()))
    outages.repeat_requests()
    attempt.name_in_requests()
    extensions.load_lazily()
    traces.start()
    sys.exit(_prefect.run_engine([os.environ["PREFECT__FLOW_ENTRYPOINT"]]))
