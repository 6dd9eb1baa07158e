"""Errors of a warehouse."""


class WarehouseError(Exception):
    """The warehouse cannot be used as configured; the message names cause and fix in one line."""


class TableConflictError(WarehouseError):
    """A table cannot be created or written; a retry does not help."""
