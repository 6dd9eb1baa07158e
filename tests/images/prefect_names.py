"""Says of names inside the installed Prefect what the test of the contract compares.

Usage: prefect_names.py < JSON {"signatures": [name, …], "calls": {name: [function, …]}}
Prints JSON of the same form: each signature without annotations, and the calls of the functions in
the order in which the source has them. A missing name is reported with the text of the error.
"""

import ast
import importlib
import inspect
import json
import re
import sys
import textwrap
from typing import Any


def find(name: str) -> Any:
    """The object of a dotted name whose first parts are a module."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in path.split("."):
        found = getattr(found, attribute)
    return found


def signature(name: str) -> str:
    try:
        found = inspect.signature(find(name))
    except (ImportError, AttributeError) as error:
        return str(error)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    # A default that is an object has its address in its words.
    return re.sub(r"=<[^>]*>", "=<object>", str(inspect.Signature(bare)))


def calls(name: str, wanted: list[str]) -> list[str]:
    """The calls of the wanted functions or methods, by their own names."""
    try:
        source = textwrap.dedent(inspect.getsource(find(name)))
    except (ImportError, AttributeError) as error:
        return [str(error)]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in wanted:
                found.append((node.lineno, called))
    return [called for _, called in sorted(found)]


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    answer = {
        "signatures": {name: signature(name) for name in asked["signatures"]},
        "calls": {name: calls(name, wanted) for name, wanted in asked["calls"].items()},
    }
    json.dump(answer, sys.stdout)
