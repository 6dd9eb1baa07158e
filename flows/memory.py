"""A process is as large as what it holds: what is freed can be used for anything, or goes back."""

import gc


def share() -> None:
    """Let Arrow take memory from the C library, as NumPy does, in this process from now on.

    What Arrow's own allocator has kept of a text column is of no use to a column of numbers.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())


def give_back() -> None:
    """Give what is free back to the system: to the next step it would be on top of what it takes.

    The C library keeps it otherwise, in pieces.
    """
    import pyarrow as pa

    gc.collect()
    pa.system_memory_pool().release_unused()  # all of the C library's, not only Arrow's
