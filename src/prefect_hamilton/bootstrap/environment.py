"""Values of the desired state that are not in its files but in the environment."""

from collections.abc import Mapping
from string import Template
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1)]


class FromEnvironment(BaseModel):
    """The value of an environment variable, which is not in the file.

    `default` may name other variables, as in `duckdb:///${PREFECT_HAMILTON_STATE}/x.duckdb`. In a
    block, it is used for a new block only: a default never replaces a value that was set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_env: Name
    default: str | None = None

    def is_default(self, environment: Mapping[str, str]) -> bool:
        """Whether the value is only the default."""
        return not environment.get(self.from_env)

    def resolve(self, environment: Mapping[str, str]) -> str | None:
        """Return the value; None when neither the variable nor all in the default are set."""
        if value := environment.get(self.from_env):
            return value
        if self.default is None:
            return None
        try:
            return Template(self.default).substitute(environment)
        except KeyError:
            return None
