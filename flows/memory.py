"""What is freed goes back to the system, so that a process is as large as what it holds."""

import gc


def give_back() -> None:
    """Return memory that is free, but kept by Python, Arrow or the C library for later use.

    What a step leaves behind adds to what the next one takes otherwise, for each of them keeps what
    the others could use.
    """
    import pyarrow as pa

    gc.collect()
    pa.default_memory_pool().release_unused()
    pa.system_memory_pool().release_unused()  # all that malloc gave, not Arrow's alone
