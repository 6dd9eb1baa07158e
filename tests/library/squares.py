"""A dataflow with a parallel block."""

import os

from hamilton.htypes import Collect, Parallelizable


def number(count: int) -> Parallelizable[int]:
    yield from range(count)


def square(number: int, forbidden: int = -1) -> int:
    if number == forbidden:
        raise ArithmeticError(f"{number} is forbidden")
    return number * number


def labelled(square: int) -> tuple[int, int]:
    return square, os.getpid()


def total(labelled: Collect[tuple[int, int]]) -> tuple[int, set[int]]:
    found = list(labelled)
    return sum(square for square, _ in found), {process for _, process in found}
