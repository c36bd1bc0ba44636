"""What a metric is, before any process counts: the form of both programs' catalogues, and how they are shown.

A process that counts alone shows its own registry. Where several processes of one machine have one address, as the
workers of an enforcer do, PROMETHEUS_MULTIPROC_DIR names a folder that they count in, and each of them answers for all.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from math import prod
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, ClassVar, Final, Literal, TypeVar

from prometheus_client import Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client import Metric as Family

__all__ = [
    "BUILD",
    "SLOW",
    "Catalogue",
    "CounterOf",
    "GaugeOf",
    "HistogramOf",
    "Label",
    "Metric",
    "built",
    "exposition",
    "shared_folder",
    "whole",
]

SLOW: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
"""Bounds in seconds of what is done for many records at once."""
FEW: Final = 32


@dataclass(frozen=True, slots=True)
class Label:
    """A label, what its values are, and how many there are at most in one process: all of them, if they are known."""

    name: str
    about: str
    most: int
    values: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, about: str, values: Iterable[str]) -> Label:
        """With values that are known."""
        known = tuple(values)
        return cls(name, about, len(known), known)


BUILD: Final = (
    Label("version", "the version of Metergate", 4),
    Label("python", "the version of Python", 4),
)


@dataclass(frozen=True, slots=True)
class Metric:
    """Name as it is shown, unit at its end; one sentence or two of help; labels."""

    name: str
    about: str
    labels: tuple[Label, ...] = ()
    kind: ClassVar[str]
    """As Prometheus calls it."""

    @property
    def most(self) -> int:
        """How many label sets there are at most."""
        return prod(label.most for label in self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the labels."""
        return tuple(label.name for label in self.labels)

    @property
    def known(self) -> Iterable[tuple[str, ...]]:
        """All label sets, if they are known and few: who watches for an increase has to see the 0 before it."""
        if not self.labels or self.most > FEW:
            return ()
        return product(*(label.values for label in self.labels))


@dataclass(frozen=True, slots=True)
class CounterOf(Metric):
    """Only grows. Processes are added up, those that have ended as well."""

    kind: ClassVar[str] = "counter"

    def on(self, registry: CollectorRegistry) -> Counter:
        """Begin to count there."""
        made = Counter(self.name, self.about, self.names, registry=registry)
        for values in self.known:
            made.labels(*values)
        return made


@dataclass(frozen=True, slots=True)
class GaugeOf(Metric):
    """A present value. `of` says whose counts where several living processes show one."""

    of: Literal["most", "least"] = "most"

    kind: ClassVar[str] = "gauge"

    def on(self, registry: CollectorRegistry) -> Gauge:
        """Begin to show it there."""
        mode: Literal["livemax", "livemin"] = "livemax" if self.of == "most" else "livemin"
        return Gauge(self.name, self.about, self.names, registry=registry, multiprocess_mode=mode)


@dataclass(frozen=True, slots=True)
class HistogramOf(Metric):
    """How many were how large. Added up as counters are."""

    bounds: tuple[float, ...] = SLOW

    kind: ClassVar[str] = "histogram"

    def on(self, registry: CollectorRegistry) -> Histogram:
        """Begin to observe there."""
        return Histogram(self.name, self.about, self.names, registry=registry, buckets=self.bounds)


M = TypeVar("M", bound=Metric)


class Catalogue:
    """All metrics of one program, whose names begin with `prefix`, in the order of the reference page."""

    def __init__(self, prefix: str, about: str) -> None:
        self.prefix, self.about = prefix, about
        self._metrics: dict[str, Metric] = {}

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._metrics.values())

    def counter(self, name: str, about: str, *labels: Label) -> CounterOf:
        """One more: `prefix` and `_total` are added to its name."""
        return self._add(CounterOf(f"{self.prefix}_{name}_total", about, labels))

    def gauge(
        self, name: str, about: str, *labels: Label, of: Literal["most", "least"] = "most"
    ) -> GaugeOf:
        """One more."""
        return self._add(GaugeOf(f"{self.prefix}_{name}", about, labels, of))

    def histogram(
        self, name: str, about: str, *labels: Label, bounds: tuple[float, ...] = SLOW
    ) -> HistogramOf:
        """One more."""
        return self._add(HistogramOf(f"{self.prefix}_{name}", about, labels, bounds))

    def _add(self, metric: M) -> M:
        assert metric.name not in self._metrics, f"{metric.name} is there twice"
        self._metrics[metric.name] = metric
        return metric


def built(info: Gauge) -> None:
    """Tell which version runs."""
    info.labels(version("metergate"), python_version()).set(1)


def shared_folder() -> Path | None:
    """Where the processes of this machine count together."""
    named = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
    return Path(named) if named else None


def whole(registry: CollectorRegistry) -> Collector:
    """What an endpoint shows: `registry`, or what all processes count that share a folder."""
    folder = shared_folder()
    return registry if folder is None else _Living(folder)


def exposition(registry: CollectorRegistry) -> bytes:
    """The text that Prometheus reads."""
    return generate_latest(whole(registry))


class _Living(Collector):
    """All processes that share a folder: what they have counted, and what those say of themselves that live."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all = MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Family]:
        _forget_dead(self._folder)
        found: Iterable[Family] = self._all.collect()  # type: ignore[no-untyped-call]
        return found


def _forget_dead(folder: Path) -> None:
    """Drop what processes said of themselves that have died: it is true no more. What they counted stays."""
    for place in folder.glob("gauge_live*_*.db"):
        try:
            os.kill(int(place.stem.rpartition("_")[2]), 0)
        except ProcessLookupError:
            place.unlink(missing_ok=True)
        except PermissionError:
            continue  # alive, and of another user
