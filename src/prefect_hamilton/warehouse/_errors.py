"""What a warehouse raises."""


class WarehouseError(Exception):
    """The warehouse cannot be used as configured; one line with the cause and the way out."""


class TableConflictError(WarehouseError):
    """A table cannot be created or written as it has to be; waiting does not help."""
