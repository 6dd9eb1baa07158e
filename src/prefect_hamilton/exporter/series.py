"""Counters, histograms and gauges, as prometheus_client exposes them.

They differ from those of prometheus_client in two respects. A series can be dropped by the value of
a label. A new counter or histogram is exposed as 0 for its first minute, because Prometheus counts
what a series gains, not what it is born with: `increase()` would miss the first run of a
deployment, and all that a new process has counted before its first scrape.
"""

import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

BORN_SECONDS = 60.0
"""Time from a series' first scrape to its first value: longer than an interval of scrapes."""

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """A metric: its name, without `_total`, its labels and, of a histogram, its buckets."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    documentation: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


@dataclass(slots=True)
class _Cell:
    """One series; of a histogram, one value per bucket and one beyond, and the sum."""

    values: "array[float]"  # which Python 3.11 cannot evaluate
    total: float = 0.0
    born: float | None = None


@dataclass(eq=False)  # the registry keeps it as a key
class Series(Collector):
    """All series of the exporter. Safe to use from several threads."""

    families: tuple[Family, ...]
    born_seconds: float = BORN_SECONDS
    on_scrape: Callable[[], None] = lambda: None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Start without any series."""
        self._cells: dict[Family, dict[Labels, _Cell]] = {each: {} for each in self.families}

    def add(self, family: Family, labels: Labels, amount: float = 1.0) -> None:
        """Add to a counter."""
        with self._lock:
            self._cell(family, labels, 1).values[0] += amount

    def observe(self, family: Family, labels: Labels, value: float) -> None:
        """Count a value in a histogram."""
        with self._lock:
            cell = self._cell(family, labels, len(family.buckets) + 1)
            cell.values[bisect_left(family.buckets, value)] += 1
            cell.total += value

    def set(self, family: Family, labels: Labels, value: float) -> None:
        """Set a gauge."""
        with self._lock:
            self._cell(family, labels, 1).values[0] = value

    def raise_to(self, family: Family, labels: Labels, value: float) -> None:
        """Set a gauge if that makes it greater."""
        with self._lock:
            cell = self._cell(family, labels, 1)
            cell.values[0] = max(cell.values[0], value)

    def replace(self, family: Family, values: dict[Labels, float]) -> None:
        """Set all series of a gauge, and drop the others."""
        with self._lock:
            self._cells[family] = {key: _Cell(array("d", [value])) for key, value in values.items()}

    def drop(self, is_gone: Callable[[dict[str, str]], bool]) -> None:
        """Drop the series whose labels `is_gone` accepts."""
        with self._lock:
            for family, cells in self._cells.items():
                gone = [key for key in cells if is_gone(dict(zip(family.labels, key, strict=True)))]
                for key in gone:
                    del cells[key]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of one scrape."""
        now = time.monotonic()
        for family in self.families:
            metric = Metric(family.name, family.documentation, family.kind)
            with self._lock:
                for key, cell in self._cells[family].items():
                    metric.samples.extend(self._samples(family, key, cell, now))
            yield metric
        self.on_scrape()

    def _cell(self, family: Family, labels: Labels, values: int) -> _Cell:
        cells = self._cells[family]
        if (cell := cells.get(labels)) is None:
            cell = cells[labels] = _Cell(array("d", [0.0] * values))
        return cell

    def _samples(self, family: Family, key: Labels, cell: _Cell, now: float) -> Iterator[Sample]:
        labels = dict(zip(family.labels, key, strict=True))
        if family.kind == "gauge":
            yield Sample(family.name, labels, cell.values[0])
            return
        if cell.born is None:
            cell.born = now
        shown = float(cell.born != now and now - cell.born >= self.born_seconds)
        if family.kind == "counter":
            yield Sample(f"{family.name}_total", labels, shown * cell.values[0])
            return
        count = 0.0
        for bound, value in zip((*family.buckets, "+Inf"), cell.values, strict=True):
            count += shown * value
            yield Sample(f"{family.name}_bucket", {**labels, "le": str(bound)}, count)
        yield Sample(f"{family.name}_sum", labels, shown * cell.total)
        yield Sample(f"{family.name}_count", labels, count)
