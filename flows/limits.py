"""Limits of a source, in a separate module so that flows can import them without pandas."""

from dataclasses import dataclass

DEFAULT_SECONDS = 600.0
DEFAULT_MEGABYTES = 100


@dataclass(frozen=True)
class Limits:
    """
    Limits of one source, with all its pages.

    Args:
        seconds: Time to read a source over the network, from the first look-up of its address to
            the last byte. Each attempt of a task has that time.
        megabytes: Size (1 MB = 1,000,000 bytes), both of what is received and of what that is
            decompressed. Memory grows to a multiple of it.

    """

    seconds: float = DEFAULT_SECONDS
    megabytes: int = DEFAULT_MEGABYTES


DEFAULT_LIMITS = Limits()
