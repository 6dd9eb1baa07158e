"""Run a flow once, in this process, for a person at a terminal."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.exceptions import ParameterTypeError
from prefect.settings import (
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)

# For when no server is configured: a temporary one sets up its database when it first starts.
_TEMPORARY_SERVER = {
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 180,
    PREFECT_SERVER_ANALYTICS_ENABLED: False,
}


def run(flow: Flow[..., Any], parameters: Mapping[str, Any], in_short: Callable[[Any], str]) -> int:
    """
    Run `flow` and write its result, as `in_short` words it, or why there is none; one line.

    Returns the exit code: 0, 1 when the run did not complete, 2 for parameters it refuses.
    """
    try:
        # Before a server is started, which takes a while.
        flow.validate_parameters(dict(parameters))
        with temporary_settings(set_defaults=_TEMPORARY_SERVER):
            state = cast(State[Any], flow(**parameters, return_state=True))
            result = state.result(raise_on_failure=False)
    except ParameterTypeError as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 2
    except RuntimeError as error:
        if not str(error).startswith("Failed to reach API"):
            raise
        sys.stderr.write(f"{error} Start that server, or unset PREFECT_API_URL to do without.\n")
        return 1
    if not state.is_completed():
        sys.stderr.write(f"{state.name}: {state.message}\n")
        return 1
    sys.stdout.write(f"{in_short(result)}\n")
    return 0
