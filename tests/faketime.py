"""Another clock for a process, as on a node whose clock is not synchronized: libfaketime."""

from pathlib import Path

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
"""None where it is not installed."""


def clock(offset: str, library: Path | str | None = LIBRARY) -> dict[str, str]:
    """The environment of a process with that clock; what measures durations is not changed."""
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": offset,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
