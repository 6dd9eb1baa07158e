"""Summaries of inputs and results for the Hamilton UI: small, quick, and without secrets.

The time is bounded by looking at no more than LIMIT characters of a value, and by calling no code
of unknown types. The Hamilton SDK, which summarizes frames and models, would look at all of them.
"""

import dataclasses
import datetime
import decimal
import enum
import math
import pathlib
import uuid
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from hamilton_sdk.tracking import constants
from pydantic import BaseModel

from prefect_hamilton.masking import MASK, holds_secret, mask, mask_code, names_secret

LIMIT = 10_000
"""Maximum number of characters of a value that is shown."""

FRAME_CELLS = 200_000
"""Maximum number of cells of a data frame whose columns are summarized; takes about 0.5 s."""

FRAME_COLUMNS = 100
"""Maximum number of columns of a data frame that is summarized; each takes the SDK about 10 ms."""

CATEGORIES = 1_000
"""Maximum number of categories of a column that is summarized: the SDK lists each."""

TEXT_LIMIT = 1_000_000
"""Characters of a single text in a request; a longer one is the message of an exception."""

DEPTH = 50
HEAD = 5  # rows of a data frame that is an input
LONG_INTEGER = 1_000  # bits

_PRINTED = (
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    pathlib.PurePath,
    uuid.UUID,
)
_CODE = frozenset({"nodes", "code_artifacts", "code_log", "html"})
_HIDDEN = (
    "message not stored, because an input of this run contains a password or the query of a "
    "URL; see the log of the flow run"
)


class _TooLargeError(Exception):
    """The value has more characters than may be shown."""


class Shown:
    """Makes values fit to be shown; `held_secret` says whether one of them held a secret."""

    def __init__(self) -> None:
        self.held_secret = False
        self._left = 0

    def inputs(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return a run's inputs as JSON: small ones as they are, of others only what they are."""
        shown = self.config(values)
        if constants.CAPTURE_DATA_STATISTICS:
            return shown
        return {name: type(value).__name__ for name, value in values.items()}

    def config(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return a dataflow's config as JSON."""
        return {name: self._item(name, value, self._bounded) for name, value in values.items()}

    def result(self, node_name: str, value: Any) -> Any:
        """Return what the SDK can sum up instead of a node's result without looking at all of it.

        Itself for what it sums up best: a data frame that is not too large, a model, a number.
        """
        if isinstance(value, pd.DataFrame | pd.Series | np.ndarray):
            if not constants.CAPTURE_DATA_STATISTICS:  # then it is the schema that is shown
                return value[:HEAD]
            return f"{_what(value)}, not summarized" if _is_large(value) else value
        if not constants.CAPTURE_DATA_STATISTICS:
            return value
        if isinstance(value, list):
            value = value[: constants.MAX_LIST_LENGTH_CAPTURE + 1]
        elif isinstance(value, dict):
            value = dict(islice(value.items(), constants.MAX_DICT_LENGTH_CAPTURE + 1))
        elif not _is_plain(value):
            return value
        return self._item(node_name, value, self._bounded)

    def _item(self, name: object, value: Any, shown: Any) -> Any:
        if names_secret(name) and isinstance(value, str | bytes) and value:
            self.held_secret = True
            return MASK
        return shown(value)

    def _bounded(self, value: Any) -> Any:
        self._left = LIMIT
        small = value
        if isinstance(value, pd.DataFrame):
            small = value.iloc[:HEAD, : LIMIT // HEAD + 1].to_dict()
        elif isinstance(value, pd.Series):
            small = value.head(HEAD).to_dict()
        try:
            return self._plain(small, 0)
        except _TooLargeError:
            return f"{_what(value)}, not kept"

    def _plain(self, value: Any, depth: int) -> Any:
        self._count(1)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, enum.Enum):
            return self._plain(value.value, depth)
        if isinstance(value, np.generic):
            return self._plain(value.item(), depth) if value.dtype.kind in "biufSU" else str(value)
        if isinstance(value, int | float):
            return self._number(value)
        if isinstance(value, _PRINTED):
            return self._text(str(value))
        return self._container(value, depth + 1)

    def _container(self, value: Any, depth: int) -> Any:
        if depth > DEPTH:
            raise _TooLargeError
        if isinstance(value, BaseModel):
            value = value.__dict__
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        elif isinstance(value, tuple) and hasattr(value, "_asdict"):
            value = value._asdict()
        if isinstance(value, dict):
            return {
                self._key(key): self._item(key, item, lambda item: self._plain(item, depth))
                for key, item in value.items()
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [self._plain(item, depth) for item in value]
        return self._text(_what(value))

    def _key(self, key: Any) -> str:
        plain = self._plain(key, DEPTH)
        return plain if isinstance(plain, str) else str(plain)

    def _number(self, value: float) -> Any:
        if isinstance(value, int) and value.bit_length() > LONG_INTEGER:
            return f"int of {value.bit_length()} bits"
        self._count(len(str(value)))
        return value if math.isfinite(value) else str(value)

    def _text(self, text: str) -> str:
        self.held_secret = self.held_secret or holds_secret(text[:LIMIT])
        self._count(len(text))
        return mask(text)

    def _count(self, characters: int) -> None:
        self._left -= characters
        if self._left < 0:
            raise _TooLargeError


def without_message(error: BaseException) -> BaseException:
    """Return an exception that is shown as `error` is, with its traceback, but says nothing."""
    kind = type(error)
    stand_in: type[Exception] = type(kind.__name__, (Exception,), {"__module__": kind.__module__})
    return stand_in(_HIDDEN).with_traceback(error.__traceback__)


def masked(value: Any, of_text: Any = mask) -> Any:
    """Return the JSON of a request with the secrets in its texts masked, in code those of URLs."""
    if isinstance(value, str):
        return of_text(value) if len(value) <= TEXT_LIMIT else f"{_what(value)}, not kept"
    if isinstance(value, dict):
        named = ((key if isinstance(key, str) else str(key), item) for key, item in value.items())
        return {
            masked(name): masked(item, mask_code if name in _CODE else of_text)
            for name, item in named
        }
    if isinstance(value, list | tuple):
        return [masked(item, of_text) for item in value]
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        # Hamilton's sign that a named tuple is not to be tracked.
        return not hasattr(value, "secret_key")
    kinds = (str, bytes, int, float, set, frozenset, BaseModel, enum.Enum, np.generic)
    return value is None or isinstance(value, (*kinds, *_PRINTED))


def _is_large(frame: "pd.DataFrame | pd.Series[Any] | np.ndarray[Any, Any]") -> bool:
    if frame.size > FRAME_CELLS or (frame.ndim > 1 and frame.shape[1] > FRAME_COLUMNS):
        return True
    columns = frame.dtypes if isinstance(frame, pd.DataFrame) else [frame.dtype]
    return any(
        isinstance(kind, pd.CategoricalDtype) and len(kind.categories) > CATEGORIES
        for kind in columns
    )


def _what(value: Any) -> str:
    """Say what a value is, without a look into it."""
    name = type(value).__name__
    if isinstance(value, pd.DataFrame):
        columns = ", ".join(map(str, islice(value.columns, HEAD)))
        more = ", …" if value.shape[1] > HEAD else ""
        return f"{name} of {value.shape[0]} rows and {value.shape[1]} columns ({columns}{more})"
    if isinstance(value, pd.Series | np.ndarray):
        return f"{name} of {value.size} values"
    if isinstance(value, str | bytes):
        return f"{name} of {len(value)} characters"
    if isinstance(value, list | tuple | dict | set | frozenset):
        return f"{name} of {len(value)} items"
    return name
