"""A flow that caches its nodes and dies after the first of them: `python cached_flow.py STORAGE`.

Prints each node that is computed.
"""

import os
import sys
from pathlib import Path

from hamilton import ad_hoc_utils
from prefect import flow, task

from prefect_hamilton.dataflow import Dataflow


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def costly(x: int) -> int:
    say("computed costly")
    return x * 2


def fatal(costly: int) -> int:
    say("computed fatal")
    if "DIE" in os.environ:
        os._exit(9)
    return costly + 1


module = ad_hoc_utils.create_temporary_module(costly, fatal, module_name="costly")


@task
def compute(x: int) -> int:
    cached = Dataflow(module, picture=False).with_cache()
    return int(cached.execute("fatal", inputs={"x": x})["fatal"])


@flow
def cached_flow(x: int = 2) -> int:
    return compute(x)


if __name__ == "__main__":
    say(f"result {cached_flow.with_options(result_storage=Path(sys.argv[1]))()}")
