"""What the bootstrap of a release created, kept on the Prefect server: only this is removed.

Beside it are the settings of the release's repositories, which a plan of one of them needs.

An object is known by its id: one of the same name that a person made has another. Several
automations may have one name, and of these only the recorded one is written.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Self
from uuid import UUID

from prefect.blocks.core import Block
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.filesystems import LocalFileSystem
from pydantic import BaseModel, Field, HttpUrl

SLUG = "bootstrap-record"

NAMED = "repository "
"""What the source of an object begins with whose repository has a name in flows.repositories."""

NEW = UUID(int=0)
"""Stands for the id of a deployment that is not created yet."""

FILES = "files"
"""The source of what the files of desired state name; that of other objects is a repository."""


class BootstrapRecord(Block):
    """The block document that holds the record of a release."""

    _block_type_name = "Bootstrap record"
    _block_type_slug = SLUG
    # That of files: the UI shows no picture of a type without a logo.
    _logo_url = HttpUrl(LocalFileSystem._logo_url)
    _description = (
        "What the bootstrap of a release created, and removes when Git no longer names it."
    )

    release: str
    objects: dict[str, Any]
    repositories: dict[str, Any] = Field(default_factory=dict)


class Entry(BaseModel):
    """An object that a source names.

    A deployment whose `id` is NEW is about to be created. `prune` is whether it is removed when its
    source no longer names it, or is no longer there. `created` is whether the bootstrap created it:
    nothing else is ever removed. `ending` is a deployment that is paused, and removed when its runs
    have ended. `triggers` are the automations of a deployment's triggers; None if it is not known
    which they are. `disabled` is an automation that its source has disabled, or a deployment that
    it has paused: a person who pauses one leaves no trace here.
    """

    kind: str
    name: str
    id: UUID
    source: str = FILES
    prune: bool = True
    created: bool = True
    ending: bool = False
    triggers: list[UUID] | None = None
    disabled: bool = False

    @property
    def key(self) -> str:
        """Return the kind and the name, which are unique on a server."""
        return f"{self.kind} {self.name}"

    def may_be(self, id_: UUID) -> bool:
        """Whether it is of the object with this id, also if the id was not known yet."""
        return self.id in (id_, NEW)


class Created:
    """The record of one release, in a block document; without a release nothing is recorded."""

    def __init__(self, client: PrefectClient, release: str | None) -> None:
        self._client = client
        self.release = release
        self._entries: dict[str, Entry] = {}
        self._stored: dict[str, Entry] = {}
        self._dropped: list[Entry] = []
        self._settings: dict[str, Any] | None = None
        self.repositories: dict[str, Any] = {}
        """The settings of each repository of the release, by name, as the record has them."""

    @classmethod
    async def load(cls, client: PrefectClient, release: str | None) -> Self:
        """Read the record of the release.

        A deployment that was about to be created, and is there, was created: the bootstrap ended
        before it could record the id.
        """
        record = cls(client, release)
        record._entries, record.repositories = await record._read()
        record._stored = dict(record._entries)
        for entry in record:
            if entry.id == NEW:
                with suppress(ObjectNotFound):
                    found = await client.read_deployment_by_name(entry.name)
                    record.put(entry.model_copy(update={"id": found.id}))
        return record

    @property
    def kept(self) -> bool:
        """Whether there is a record, so that something may be removed."""
        return self.release is not None

    def get(self, key: str) -> Entry | None:
        """Return the entry of a kind and name."""
        return self._entries.get(key)

    def of_id(self, key: str, id_: UUID) -> Entry | None:
        """Return the entry if it is for the object with this id."""
        entry = self._entries.get(key)
        return entry if entry and entry.id == id_ else None

    def put(self, entry: Entry) -> None:
        """Record an object, in place of what has this kind and name."""
        if self.kept:
            self._entries[entry.key] = entry

    def set_prune(self, source: str, prune: bool) -> None:
        """Record for all objects of a source whether they are removed."""
        for entry in self:
            if entry.source == source and entry.prune != prune:
                self.put(entry.model_copy(update={"prune": prune}))

    def set_repositories(self, settings: Mapping[str, Any]) -> None:
        """Record the settings of all repositories of the release, which hold no credential."""
        if settings != self.repositories:
            self._settings = self.repositories = dict(settings)

    def drop(self, entry: Entry) -> None:
        """Forget an object."""
        self._entries.pop(entry.key, None)
        self._stored.pop(entry.key, None)
        self._dropped.append(entry)

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries, in no particular order; the record may change meanwhile."""
        return iter(list(self._entries.values()))

    async def save(self) -> None:
        """Store what changed, beside what another bootstrap of the release stored meanwhile."""
        changed = self._entries != self._stored or self._dropped or self._settings is not None
        if self.release is None or not changed:
            return
        current, repositories = await self._read()
        for entry in self._dropped:
            if (stored := current.get(entry.key)) and stored.may_be(entry.id):
                del current[entry.key]
        for key, entry in self._entries.items():
            if entry != self._stored.get(key):
                current[key] = _merged(entry, self._stored.get(key), current.get(key))
        objects = {key: current[key].model_dump(mode="json") for key in sorted(current)}
        document = BootstrapRecord(
            release=self.release,
            objects=objects,
            repositories=repositories if self._settings is None else self._settings,
        )
        await document.save(self._name(self.release), overwrite=True, client=self._client)
        self._settings = None
        self._dropped.clear()
        self._stored = dict(self._entries)  # what others stored is theirs to remove

    async def _read(self) -> tuple[dict[str, Entry], dict[str, Any]]:
        """Return the entries, and the settings of the repositories."""
        if self.release is None:
            return {}, {}
        try:
            document = await self._client.read_block_document_by_name(
                self._name(self.release), block_type_slug=SLUG
            )
        except ObjectNotFound:
            return {}, {}
        objects = document.data.get("objects") or {}
        entries = {key: Entry.model_validate(entry) for key, entry in objects.items()}
        return entries, document.data.get("repositories") or {}

    @staticmethod
    def _name(release: str) -> str:
        """Return the document's name: different releases have different ones."""
        words = re.sub("[^a-z0-9]+", "-", release.lower()).strip("-")
        return f"{words}-{hashlib.sha256(release.encode()).hexdigest()[:8]}"


def _merged(entry: Entry, before: Entry | None, current: Entry | None) -> Entry:
    """Return an entry with what another bootstrap stored of the same object since `before`."""
    if current is None or not current.may_be(entry.id):
        return entry
    ending, triggers = (before.ending, before.triggers) if before else (False, None)
    merged = entry.model_copy(update={"created": entry.created or current.created})
    if entry.ending == ending:
        merged.ending = current.ending
    if entry.triggers == triggers:
        merged.triggers = current.triggers
    elif current.triggers not in (triggers, entry.triggers):
        merged.triggers = None  # both have written them: which there are depends on who was last
    return merged
