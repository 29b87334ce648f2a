"""Sums the metrics of all replicas into one Prometheus page, on which no counter runs backwards.

A replica tells the totals it has counted since it started. Here the growth since it last told is
added up, so that the share of a replica that is gone stays in the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from policies.errors import InvalidRequest

# Name, labels, value, and the kind of the family: all that crosses from a replica.
Sample = tuple[str, Mapping[str, str], float, str]

SUFFIXES: Final = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "gauge": ("",),
}
# A replica that has been silent for so long is gone, and its gauges with it, seconds.
LIVE_S: Final = 30.0
# Who has told within this time takes requests, seconds; they tell each second.
RECENT_S: Final = 5.0
# After this even its totals are forgotten, seconds; its id is kept, lest they be added again.
FORGET_S: Final = 3600.0


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Series:
    """One line of the page: kind and name of its family, its own name, its sorted labels."""

    kind: str
    family: str
    name: str
    labels: tuple[tuple[str, str], ...]


@dataclass(slots=True, kw_only=True)
class _Source:
    """What one replica said when it last told, and when that was."""

    values: Mapping[Series, float]
    seen_at: float


class MetricsHub:
    """Adds up what all sources have counted, and the gauges of those that live.

    Args:
        clock: Seconds, from any origin.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._totals: dict[Series, float] = {}
        self._sources: dict[str, _Source] = {}
        self._forgotten: set[str] = set()

    def push(self, source: str, samples: Sequence[Sample]) -> int:
        """Take what a source has counted since it started, and its gauges of now.

        Args:
            source: Who tells; every process has a name of its own.
            samples: All it has: name, labels, value, kind. A counter's name ends in `_total`; a
                histogram comes as `_bucket` (label `le`), `_sum` and `_count`.

        Returns:
            How many sources have told within the last RECENT_S seconds.

        Raises:
            InvalidRequest: A kind that does not exist, or a name that does not fit it; nothing
                of this push counts.
        """
        told = {_series(name, labels, kind): value for name, labels, value, kind in samples}
        known = self._sources.get(source)
        before: Mapping[Series, float] = known.values if known else {}
        if source in self._forgotten:
            # Its past is in the totals already: it goes on from where it stands.
            before = told
        for series, value in told.items():
            if series.kind != "gauge":
                self._grow(series, value, before.get(series, 0.0))
        self._forgotten.discard(source)
        self._sources[source] = _Source(values=told, seen_at=self._clock())
        self._forget()
        return sum(self._clock() - other.seen_at <= RECENT_S for other in self._sources.values())

    def text(self, own: Sequence[Sample] = ()) -> str:
        """Return the sums in Prometheus' text format.

        Args:
            own: Samples of the process that asks, who is no source.
        """
        sums = dict(self._totals)
        sums |= {_series(name, labels, kind): value for name, labels, value, kind in own}
        for source in self._sources.values():
            if self._clock() - source.seen_at <= LIVE_S:
                for series, value in source.values.items():
                    if series.kind == "gauge":
                        sums[series] = sums.get(series, 0.0) + value
        registry = CollectorRegistry()
        registry.register(_Page(sums))
        return generate_latest(registry).decode()

    def state(self) -> dict[str, Any]:
        """Return all that must outlive this process, as plain JSON values."""
        return {
            "totals": _plain(self._totals),
            "sources": {name: _plain(source.values) for name, source in self._sources.items()},
            "forgotten": sorted(self._forgotten),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned; what sources count meanwhile is told by themselves.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: It is no such state; nothing has
                changed.
        """
        now = self._clock()
        totals = _series_of(state["totals"])
        sources = {
            str(name): _Source(values=_series_of(values), seen_at=now)
            for name, values in state["sources"].items()
        }
        self._forgotten = {str(name) for name in state["forgotten"]}
        self._totals, self._sources = totals, sources

    def _grow(self, series: Series, value: float, before: float) -> None:
        """Add what has come since; a lower value than before was counted anew from zero."""
        growth = value - before if value >= before else value
        self._totals[series] = self._totals.get(series, 0.0) + growth

    def _forget(self) -> None:
        """Bound the memory: replicas come and go."""
        oldest = self._clock() - FORGET_S
        for name in [name for name, source in self._sources.items() if source.seen_at < oldest]:
            del self._sources[name]
            self._forgotten.add(name)


class _Page(Collector):
    """The sums as prometheus_client wants them: grouped into families."""

    def __init__(self, sums: Mapping[Series, float]) -> None:
        self._sums = sums

    def collect(self) -> Iterator[Metric]:
        """Yield one metric a family."""
        in_order = sorted(self._sums, key=_page_order)
        for (kind, family), members in groupby(in_order, key=lambda s: (s.kind, s.family)):
            metric = Metric(family, "Summed over all replicas.", kind)
            for series in members:
                metric.add_sample(series.name, dict(series.labels), self._sums[series])
            yield metric


def _plain(values: Mapping[Series, float]) -> list[list[Any]]:
    """Write series and values as JSON has them."""
    return [
        [one.kind, one.family, one.name, [list(label) for label in one.labels], value]
        for one, value in values.items()
    ]


def _series_of(plain: Sequence[Sequence[Any]]) -> dict[Series, float]:
    """Read them back; raises ValueError or TypeError for what is none."""
    found = {}
    for kind, family, name, labels, value in plain:
        pairs = tuple((str(key), str(word)) for key, word in labels)
        series = Series(kind=str(kind), family=str(family), name=str(name), labels=pairs)
        found[series] = float(value)
    return found


def _page_order(series: Series) -> tuple[object, ...]:
    """Order lines by family, and a histogram's buckets by their upper bound, as numbers."""
    labels = dict(series.labels)
    bound = float(labels.pop("le", "inf"))
    return series.kind, series.family, sorted(labels.items()), series.name, bound


def _series(name: str, labels: Mapping[str, str], kind: str) -> Series:
    """Name a sample's line; raises InvalidRequest where name and kind do not fit."""
    for suffix in SUFFIXES.get(kind, ()):
        if name.endswith(suffix) and name != suffix:
            family = name.removesuffix(suffix)
            return Series(kind=kind, family=family, name=name, labels=tuple(sorted(labels.items())))
    endings = ", ".join(f"{k}: {'/'.join(ends) or 'any'}" for k, ends in SUFFIXES.items())
    raise InvalidRequest(
        f"metric {name[:100]!r} of kind {kind[:100]!r} is not known",
        field="samples",
        value=name[:100],
        allowed=f"names that end as their kind says: {endings}",
    )
