"""Keep the memory of a process small: freed memory is reused, or returned to the system."""

import gc


def share() -> None:
    """Let Arrow take memory from the C library, as NumPy does, in this process from now on.

    What Arrow's own allocator has kept of a text column is of no use to a column of numbers.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())


def give_back() -> None:
    """Return free memory to the system, so that the next step does not need it in addition.

    Otherwise, the C library keeps it in fragments.
    """
    import pyarrow as pa

    gc.collect()
    pa.system_memory_pool().release_unused()  # all of the C library's, not only Arrow's
