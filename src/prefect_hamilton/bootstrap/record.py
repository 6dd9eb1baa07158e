"""A record of what the bootstrap wrote last, so that it never overwrites later changes of users.

A file of digests, no values, of the fields of each object. A field that differs from the record was
changed by a user and is kept; so is a field that existed before.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from prefect_hamilton.bootstrap.errors import BootstrapError

Digests = dict[str, Any]
"""Digests of fields by name, nested as the fields are."""

DEFAULT = "default "
"""What a digest begins with when the value was only the default of one that may be given."""


class NoRecord:
    """No record: what is desired replaces what there is."""

    def merge(
        self,
        key: str,
        desired: dict[str, Any],
        existing: dict[str, Any],
        defaults: Collection[str] = (),
    ) -> dict[str, Any]:
        """Return `existing` with what is desired; what the desired fields do not name stays.

        `defaults` are the desired fields whose value is only a default: it replaces none.
        """
        given = {name: existing[name] for name in defaults if name in existing}
        return existing | desired | given

    def created(self, key: str, desired: dict[str, Any], defaults: Collection[str] = ()) -> None:
        """Note what a new object holds."""

    def removed(self, key: str) -> None:
        """Forget an object."""

    def is_as_written(self, key: str, existing: dict[str, Any]) -> bool:
        """Whether no person changed the object since; without a record, Git decides."""
        return True

    def save(self) -> None:
        """Keep what was noted."""


class Record(NoRecord):
    """The record in a file, which need not exist yet. Raises BootstrapError when it is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._objects: dict[str, Digests] = json.loads(path.read_bytes())
            if not isinstance(self._objects, dict):
                raise ValueError("not an object")
        except FileNotFoundError:
            self._objects = {}
        except OSError as error:
            raise BootstrapError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise BootstrapError(
                f"{path} is damaged ({error}): remove it; objects that differ from the files "
                "are then kept."
            ) from error

    def merge(
        self,
        key: str,
        desired: dict[str, Any],
        existing: dict[str, Any],
        defaults: Collection[str] = (),
    ) -> dict[str, Any]:
        """Return `existing` with what is desired, but for the fields that a person changed.

        `defaults` are the desired fields whose value is only a default: it follows a default, but
        never a value that was given.
        """
        last = self._objects.get(key, {})
        given = {
            name: existing[name]
            for name in defaults
            if name in existing and not last.get(name, "").startswith(DEFAULT)
        }
        desired = desired | given
        merged: dict[str, Any] = _merge(desired, existing, last)
        self._note(key, desired, merged, set(defaults) - set(given))
        return merged

    def created(self, key: str, desired: dict[str, Any], defaults: Collection[str] = ()) -> None:
        """Note what a new object holds."""
        self._objects[key] = {}
        self._note(key, desired, desired, defaults)

    def removed(self, key: str) -> None:
        """Forget an object."""
        self._objects.pop(key, None)

    def is_as_written(self, key: str, existing: dict[str, Any]) -> bool:
        """Whether all fields that were written are as they were written."""
        last = self._objects.get(key)
        return last is not None and all(
            _is_as_written(existing.get(name), digest) for name, digest in last.items()
        )

    def _note(
        self, key: str, desired: dict[str, Any], merged: dict[str, Any], defaults: Collection[str]
    ) -> None:
        last = self._objects.get(key, {})
        digests = _digests(desired, merged, last)
        for name in defaults:
            if digests.get(name, DEFAULT) != last.get(name):
                digests[name] = DEFAULT + digests[name]
        self._objects[key] = digests

    def save(self) -> None:
        """Write the file, whole or not at all, readable by its owner only."""
        try:
            descriptor, draft = tempfile.mkstemp(dir=self._path.parent)
            with os.fdopen(descriptor, "w") as file:
                json.dump(self._objects, file, indent=1, sort_keys=True)
            Path(draft).replace(self._path)
        except OSError as error:
            raise BootstrapError(f"{self._path} cannot be written: {error.strerror}.") from error


def _merge(desired: Any, existing: Any, last: Any) -> Any:
    if not (isinstance(desired, dict) and isinstance(existing, dict)):
        untouched = desired == existing or _is_as_written(existing, last)
        return desired if untouched else existing
    known = last if isinstance(last, dict) else {}
    merged = {}
    for name in {**existing, **desired}:
        if name not in existing:
            if name not in known:  # else a person has removed it
                merged[name] = desired[name]
        elif name in desired:
            merged[name] = _merge(desired[name], existing[name], known.get(name))
        elif not _is_as_written(existing[name], known.get(name)):
            merged[name] = existing[name]
    return merged


def _is_as_written(existing: Any, last: Any) -> bool:
    if isinstance(existing, dict) and isinstance(last, dict):
        return existing.keys() == last.keys() and all(
            _is_as_written(existing[name], last[name]) for name in existing
        )
    return isinstance(last, str) and last.removeprefix(DEFAULT) == _digest(existing)


def _digests(desired: Any, merged: Any, last: Any) -> Any:
    """Return the digests of what is written; those of before for what a person changed."""
    if isinstance(desired, dict) and isinstance(merged, dict):
        known = last if isinstance(last, dict) else {}
        found = {
            name: _digests(desired[name], merged.get(name), known.get(name)) for name in desired
        }
        return {name: digest for name, digest in found.items() if digest is not None}
    return _digest(desired) if desired == merged else last


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Return a set, which has no order, as a list that has one; anything else as text."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
