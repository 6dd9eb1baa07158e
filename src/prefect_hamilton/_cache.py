"""Hamilton's cache in Prefect's result storage. Imports Hamilton: import it in functions only.

The disk of a pod is deleted with the pod; the result storage of the flow, or the server's default,
is not. A result that cannot be read counts as not cached, and one that cannot be written causes a
warning.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from hamilton.caching.stores.base import MetadataStore, ResultStore
from prefect import results

from prefect_hamilton.tracking import run_logger

PREFIX = "hamilton-cache"


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
            serializer=current.serializer,
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
