"""The one error of the bootstrap."""


class BootstrapError(Exception):
    """An error that a user can fix; the message names the cause and the fix in one line."""
