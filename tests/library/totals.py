"""A dataflow of three nodes."""


class NoMoneyError(Exception):
    """An exception of a dataflow's own, which takes two arguments and keeps one."""

    def __init__(self, what: str, missing: int) -> None:
        super().__init__(f"{missing} € are missing for {what}")
        self.missing = missing


def doubled(x: int) -> int:
    return x * 2


def checked(doubled: int) -> int:
    if doubled < 0:
        raise NoMoneyError("this", -doubled)
    return doubled


def total(checked: int, x: int, discount: int = 0) -> int:
    return checked + x - discount
