"""What changed between two results, as a table for a terminal or a Markdown page. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from loadtests.latencies import SHOWN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from loadtests.result import Result

__all__ = ["differences", "table"]

_THOUSAND: Final = 1000


def differences(before: Result, after: Result) -> list[str]:
    """In what the conditions differ: what keeps figures from being compared."""
    found = [
        f"{name}: {old} and {new}"
        for name, old, new in (
            ("scenario", before.scenario, after.scenario),
            ("tool", before.tool, after.tool),
            ("system", before.machine.system, after.machine.system),
            ("cores", before.machine.cores, after.machine.cores),
            ("memory", f"{before.machine.memory_mb} MB", f"{after.machine.memory_mb} MB"),
            ("Python", before.machine.python, after.machine.python),
            *_both(before.parameters, after.parameters),
            *_both(before.machine.versions, after.machine.versions),
        )
        if old != new
    ]
    if not (before.agrees and after.agrees):
        which = [name for name, one in (("A", before), ("B", after)) if not one.agrees]
        found.append(f"the sums of {' and '.join(which)} did not agree")
    loads = f"{before.machine.load:g} and {after.machine.load:g}"
    if max(before.machine.load, after.machine.load) > before.machine.cores / 2:
        found.append(f"something else ran: load before {loads}")
    return found


def table(before: Result, after: Result) -> str:
    """Figures of A and B and their ratio, then what else differs."""
    rows = [("", "A", "B", "B / A"), *_rows(before, after)]
    wide = [max(len(row[place]) for row in rows) for place in range(4)]
    lines = [_line(row, wide) for row in rows]
    lines.insert(1, _line(["-" * wide[0], *("-" * (one - 1) + ":" for one in wide[1:])], wide))
    lines.append("")
    lines.append(f"A: {before.scenario}, {before.started_at:%Y-%m-%d %H:%M:%S} UTC")
    lines.append(f"B: {after.scenario}, {after.started_at:%Y-%m-%d %H:%M:%S} UTC")
    lines += [f"differs: {one}" for one in differences(before, after)]
    return "\n".join(lines)


def _both(
    before: Mapping[str, object], after: Mapping[str, object]
) -> Iterator[tuple[str, object, object]]:
    for name in sorted(before.keys() | after.keys()):
        yield name, before.get(name), after.get(name)


def _rows(before: Result, after: Result) -> Iterator[tuple[str, str, str, str]]:
    yield _row("calls/s", before.calls_a_second, after.calls_a_second)
    yield _row("decisions/s", _decisions(before), _decisions(after))
    for name, shown in SHOWN.items():
        yield _row(f"{shown} ms", before.latency_ms.get(name), after.latency_ms.get(name))
    yield _row("sent late by, p99 ms", before.delay_ms.get("p99"), after.delay_ms.get("p99"))
    yield _row("errors", float(sum(before.errors.values())), float(sum(after.errors.values())))
    yield _row("past a hard limit", before.agreement.overuse, after.agreement.overuse)
    for name, *_ in _both(before.processes, after.processes):
        yield _row(f"{name} processor µs/call", _micros(before, name), _micros(after, name))
        yield _row(f"{name} most MB", _most(before, name), _most(after, name))


def _decisions(result: Result) -> float:
    return (result.allowed + result.denied) / result.seconds


def _micros(result: Result, name: str) -> float | None:
    series = result.processes.get(name)
    return series.seconds / result.calls * 1e6 if series and result.calls else None


def _most(result: Result, name: str) -> float | None:
    series = result.processes.get(name)
    return max(series.megabytes, default=None) if series else None


def _row(name: str, before: float | None, after: float | None) -> tuple[str, str, str, str]:
    ratio = f"{after / before:.2f}" if before and after is not None else "-"
    return name, _shown(before), _shown(after), ratio


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= _THOUSAND or value == int(value) else f"{value:.3g}"


def _line(cells: Sequence[str], wide: Sequence[int]) -> str:
    first, *rest = cells
    padded = [first.ljust(wide[0]), *(c.rjust(w) for c, w in zip(rest, wide[1:], strict=True))]
    return f"| {' | '.join(padded)} |"
