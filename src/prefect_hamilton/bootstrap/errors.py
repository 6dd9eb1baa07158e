"""The one error of the bootstrap."""


class BootstrapError(Exception):
    """Something a person can mend; the message names the cause and the way out in one line."""
