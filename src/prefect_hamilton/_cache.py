"""Hamilton's cache in Prefect's result storage. Imports Hamilton: import it in functions only.

The disk of a pod is deleted with the pod; the result storage of the flow, or the server's default,
is not. A result that cannot be read counts as not cached, and one that cannot be written causes a
warning.

All results are in one place, by their versions, so that a version must tell every two results
apart. Hamilton's versions leave out types, names of columns, and rows with the same label.
"""

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hamilton.caching import fingerprinting
from hamilton.caching.stores.base import MetadataStore, ResultStore
from hamilton.experimental import h_databackends
from prefect import results
from prefect.serializers import PickleSerializer

from prefect_hamilton._run_logger import run_logger

PREFIX = "hamilton-cache"

Version = Callable[..., str]
"""Returns the version of an object. By name: `depth`, how deep it is in others."""


def _typed(version: Version) -> Version:
    """Return a version that differs for objects of different types."""

    def typed(obj: Any, *args: Any, **options: Any) -> str:
        found = version(obj, *args, **options)
        if found == fingerprinting.UNHASHABLE:
            return found
        return _digest(f"{type(obj).__module__}.{type(obj).__qualname__}", found)

    return typed


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8))
        digest.update(data)
    return digest.hexdigest()


def _of_pandas(obj: Any, *_: Any, **__: Any) -> str:
    """Return the version of a data frame or series: its names, types, and rows in their order."""
    from pandas.util import hash_pandas_object

    names = [repr(getattr(obj, name, None)) for name in ("columns", "name", "dtypes", "attrs")]
    names += [repr(list(obj.index.names)), str(obj.index.dtype)]
    try:
        rows = hash_pandas_object(obj).to_numpy().tobytes()
    except TypeError:  # an object in a cell has no hash
        rows = pickle.dumps(obj)
    return _digest(*names, rows)


def _of_numpy(obj: Any, *_: Any, **__: Any) -> str:
    """Return the version of an array. The bytes of one of objects would be their addresses."""
    data = pickle.dumps(obj) if obj.dtype.hasobject else obj.tobytes()
    return _digest(str(obj.dtype), repr(obj.shape), data)


def _of_polars(obj: Any, *_: Any, **__: Any) -> str:
    """Return the version of a data frame or column of polars."""
    frame = obj if hasattr(obj, "hash_rows") else obj.to_frame()
    return _digest(repr(frame.schema), repr(frame.hash_rows().to_list()))


def _of_mapping(obj: Any, *_: Any, depth: int = 0, **__: Any) -> str:
    """Return the version of a mapping, whose order is a part of it."""
    return str(fingerprinting.hash_mapping(obj, ignore_order=False, depth=depth))


OWN: dict[type, Version] = {
    h_databackends.AbstractPandasDataFrame: _of_pandas,
    h_databackends.AbstractPandasColumn: _of_pandas,
    h_databackends.AbstractPolarsDataFrame: _of_polars,
    h_databackends.AbstractPolarsColumn: _of_polars,
    h_databackends.AbstractNumpyArray: _of_numpy,
    Mapping: _of_mapping,
}
"""Versions that leave out nothing of an object, by its type."""

# In this process, they take the place of Hamilton's.
for _kind, _version in [*fingerprinting.hash_value.registry.items()]:
    fingerprinting.hash_value.register(_kind)(_typed(OWN.get(_kind, _version)))


def stores() -> dict[str, Any]:
    """Return the stores for `Builder.with_cache` in the current run."""
    return {"metadata_store": Versions(), "result_store": Values()}


class _Records:
    """Reads and writes objects in Prefect's result storage, by the hashes of keys."""

    def __init__(self) -> None:
        current = results.get_result_store()
        # Without copies in memory, because the results of nodes may be large.
        self._store = results.ResultStore(
            result_storage=current.result_storage,
            # Another one may change types: JSON makes a list of a tuple.
            serializer=PickleSerializer(),
            cache_result_in_memory=False,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Hamilton makes the stores anew in another thread or process."""
        return {}

    def _path(self, key: str) -> str:
        digest = hashlib.sha256(key.encode()).hexdigest()
        return f"{PREFIX}/{type(self).__name__.lower()}/{digest}"

    def _read(self, key: str) -> tuple[Any] | None:
        path = self._path(key)
        try:
            return (self._store.read(path).result,) if self._store.exists(path) else None
        except Exception as error:
            run_logger().warning(
                "A cached result cannot be read, so it is computed again: %r", error
            )
            return None

    def _write(self, key: str, value: Any) -> None:
        try:
            self._store.write(value, key=self._path(key))
        except Exception as error:
            run_logger().warning("A result is not cached: %r", error)


class Values(_Records, ResultStore):
    """Results of nodes by their versions. Nothing is deleted, as in Prefect's storages."""

    def __init__(self) -> None:
        super().__init__()
        self._found: tuple[str, Any] | None = None

    def exists(self, data_version: str) -> bool:
        """Whether there is such a result; it is kept for `get`, which follows."""
        read = self._read(data_version)
        self._found = None if read is None else (data_version, read[0])
        return read is not None

    def get(self, data_version: str, **_: Any) -> Any:
        """Return a result; None when there is none."""
        found, self._found = self._found, None
        if found is not None and found[0] == data_version:
            return found[1]
        read = self._read(data_version)
        return None if read is None else read[0]

    def set(self, data_version: str, result: Any, **_: Any) -> None:
        """Keep a result."""
        self._write(data_version, result)

    def delete(self, data_version: str) -> None:
        """Keep it: it is written anew when its node is computed."""

    def delete_all(self) -> None:
        """Delete nothing."""


class Versions(_Records, MetadataStore):
    """Versions of results by what they were computed from."""

    def __len__(self) -> int:
        """Return 0: storages cannot be listed."""
        return 0

    def initialize(self, run_id: str) -> None:
        """Do nothing: the runs are Prefect's."""

    def get(self, cache_key: str, **_: Any) -> str | None:
        """Return the version of a result; None when it is not known."""
        read = self._read(cache_key)
        return None if read is None else read[0]

    def set(self, cache_key: str, data_version: str, **_: Any) -> None:
        """Keep the version of a result."""
        self._write(cache_key, data_version)

    def exists(self, cache_key: str) -> bool:
        """Whether a version is known."""
        return self.get(cache_key) is not None

    def delete(self, cache_key: str) -> None:
        """Forget a version."""
        self._write(cache_key, None)

    def delete_all(self) -> None:
        """Delete nothing."""

    def get_run_ids(self) -> Sequence[str]:
        """Return none: the runs are Prefect's."""
        return []

    def get_run(self, run_id: str) -> Sequence[dict[str, Any]]:
        """Return nothing of a run."""
        return []
