"""What became, or would become, of each object: lines of a report and of a plan."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal[
    "created",
    "updated",
    "removed",
    "unchanged",
    "kept",
    "present",
    "left out",
    "waiting",
    "ending",
]

COUNTED: tuple[Outcome, ...] = ("created", "updated", "removed", "unchanged")
"""What the last line always counts; of the others, those that there are."""

SIGNS: dict[Outcome, str] = {"created": "+", "updated": "~", "removed": "-", "ending": "-"}

LONGEST = 60
"""Characters of a value in a line."""


@dataclass(frozen=True)
class Change:
    """The outcome for one object.

    `note` is the reason if it was not applied. `differences` are lines without values that may be
    secret; `parts` are lines about what belongs to the object, such as schedules, with their sign.
    """

    outcome: Outcome
    kind: str
    name: str
    note: str = ""
    differences: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def line(self) -> str:
        """Return the change as a line of a report."""
        notes = [self.note] if self.note else [*self.differences, *self.parts]
        note = f" ({'; '.join(notes)})" if notes else ""
        return f"{self.outcome:<9}  {self.kind:<24}  {self.name}{note}"

    def diff(self) -> Iterator[str]:
        """Yield the lines of a plan; none if nothing would change."""
        if self.outcome not in SIGNS:
            return
        detail = self.note or "; ".join(self.differences)
        yield f"{SIGNS[self.outcome]} {self.kind} {self.name}" + (f": {detail}" if detail else "")
        for part in self.parts:
            sign, _, text = part.partition(" ")
            yield f"{sign} {text.replace(' ', f' {self.name} ', 1)}"


def counts(changes: Iterable[Change], words: str = "") -> str:
    """Return how many objects had each outcome, such as `1 created, 0 updated, …`."""
    number = Counter(change.outcome for change in changes)
    others = sorted(set(number) - set(COUNTED))
    return ", ".join(f"{number[outcome]} {words}{outcome}" for outcome in (*COUNTED, *others))


def differences(before: Any, after: Any, public: Collection[str]) -> tuple[str, ...]:
    """Return a line for each part that differs; values only of the fields that are `public`."""
    lines = []
    for path, old, new in _leaves(before, after, ()):
        name = ".".join(path)
        if path[0] in public:
            lines.append(f"{name} {brief(old)} → {brief(new)}")
        else:
            lines.append(f"{name} differs")
    return tuple(lines)


def brief(value: Any) -> str:
    """Return a value in one line, cut when it is long."""
    text = json.dumps(value, ensure_ascii=False, default=_plain)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _leaves(
    before: Any, after: Any, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}, key=str):
            yield from _leaves(before.get(name), after.get(name), (*path, str(name)))
    elif before != after:
        yield path, before, after
