"""A dataflow with a parallel block, in which each block waits for the others."""

import threading

from hamilton.htypes import Collect, Parallelizable

barrier = threading.Barrier(1)
TIMEOUT = 60
"""Seconds after which the others are not waited for, and the block fails."""


def number(count: int) -> Parallelizable[int]:
    yield from range(count)


def met(number: int) -> int:
    barrier.wait(TIMEOUT)
    return 1


def total(met: Collect[int]) -> int:
    return sum(met)
