"""Run a flow once from a terminal, with the parameters of the flow as options."""

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.settings import (
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)
from pydantic import Field, ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

# For the temporary server that Prefect starts if none is configured. Its first start creates a
# database.
_TEMPORARY_SERVER = {
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 180,
    PREFECT_SERVER_ANALYTICS_ENABLED: False,
}


class _Options(BaseSettings):
    """Options of a command. Environment variables are ignored, as by any other flow run."""

    model_config = SettingsConfigDict(
        cli_avoid_json=True, cli_implicit_flags=True, cli_kebab_case=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return no source that reads the environment or files."""
        return (init_settings,)


def run(
    flow: Flow[..., Any],
    summarize: Callable[[Any], str],
    arguments: Sequence[str] | None = None,
) -> int:
    """
    Run `flow` with the options in `arguments`, and print one line: its result, or the error.

    The options, their types and defaults come from the signature of the flow, and their help from
    its docstring.

    Args:
        flow: The flow to run.
        summarize: Returns one line for the result of the flow.
        arguments: Options such as `--batch-size 500`. Defaults to those of this process.

    Returns:
        The exit code: 0 if the run completed, 1 if it did not, 2 if an option is invalid.

    """
    try:
        options = CliApp.run(
            _options(flow), cli_args=list(sys.argv[1:] if arguments is None else arguments)
        )
    except ValidationError as error:
        sys.stderr.write(f"{_sentence(error)}\n")
        return 2
    try:
        with temporary_settings(set_defaults=_TEMPORARY_SERVER):
            state = cast(State[Any], flow(**dict(options), return_state=True))
            result = state.result(raise_on_failure=False)
    except RuntimeError as error:
        if not str(error).startswith("Failed to reach API"):
            raise
        sys.stderr.write(
            f"{error} Start that server, or unset PREFECT_API_URL to use a temporary one.\n"
        )
        return 1
    if not state.is_completed():
        sys.stderr.write(f"{state.name}: {state.message}\n")
        return 1
    sys.stdout.write(f"{summarize(result)}\n")
    return 0


def _options(flow: Flow[..., Any]) -> type[_Options]:
    """Return a model with a field for each parameter of `flow`."""
    described = flow.parameters.properties
    fields: dict[str, Any] = {
        name: (
            parameter.annotation,
            Field(
                default=... if parameter.default is parameter.empty else parameter.default,
                description=described[name].get("description"),
            ),
        )
        for name, parameter in inspect.signature(flow.fn).parameters.items()
    }
    summary = (inspect.getdoc(flow.fn) or flow.name).split("\n\n")[0]
    return create_model(
        "Options", __base__=_Options, __doc__=summary, __module__=flow.fn.__module__, **fields
    )


def _sentence(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()
    )
