"""The error of a dataflow's node, with the node's name."""

from functools import cache
from typing import Any, Self

from prefect_hamilton.masking import mask

MAX_CHARACTERS = 1_000
"""Of the message of a node's exception; the whole of it is in `__cause__`."""

_NODE = "_prefect_hamilton_node"


class NodeError(Exception):
    """A node of a dataflow failed; the message gives the reason in one line and names the node.

    It is of the type that the node raised as well, so `except ValueError` catches the ValueError of
    a node, with its attributes. What the node raised is its `__cause__`.
    """

    node: str
    """The node's name."""

    def __new__(cls, node: str, cause: Exception) -> Self:
        """Make one as the cause's type does, from the cause's arguments."""
        made: Self = type(cause).__new__(cls, *cause.args)
        return made

    def __init__(self, node: str, cause: Exception) -> None:
        self.__dict__.update(vars(cause))
        self.node = node
        self.__cause__ = cause

    def __str__(self) -> str:
        """Word the failure in one line, without what looks like a secret."""
        message = " ".join(mask(str(self.__cause__)).split())
        if len(message) > MAX_CHARACTERS:
            message = f"{message[:MAX_CHARACTERS]}…"
        return f"{message} (node {self.node})".lstrip()

    def __repr__(self) -> str:
        """Return what `str` says, with the type: the arguments may hold what it masks."""
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> Any:
        """Pickle the cause with the name: the type is made anew."""
        return _with_name, (self.node, self.__cause__)


def note_node(error: BaseException, node: str) -> None:
    """Remember with an exception which node raised it; of several the first."""
    vars(error).setdefault(_NODE, node)


def named(error: Exception) -> NodeError | None:
    """Return the NodeError for what a node raised; None for what no node did."""
    node = vars(error).get(_NODE)
    if node is None or isinstance(error, NodeError):
        return None
    failure = _with_name(node, error)
    return failure if isinstance(failure, NodeError) else None


def _with_name(node: str, cause: Exception) -> Exception:
    kind: Any = type(cause)
    try:
        return _type(kind)(node, cause)
    except TypeError:
        # A type that cannot be derived from; a note names the node.
        cause.add_note(f"Raised by the node {node}")
        return cause


@cache
def _type(cause: type[Exception]) -> type[NodeError]:
    names = {"__module__": cause.__module__, "__qualname__": cause.__qualname__}
    return type(cause.__name__, (NodeError, cause), names)
