"""A result as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from loadtests.agreement import summary
from loadtests.latencies import SHOWN
from loadtests.plot import Line, legend, lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from loadtests.result import Result

__all__ = ["render", "save", "warnings"]

FILE: Final = "index.html"
LATE_MS: Final = 5.0
BUSY_GENERATOR: Final = 0.85
THOUSAND: Final = 1000


def save(result: Result, folder: Path) -> None:
    """Write the page into a run's folder."""
    (folder / FILE).write_text(render(result), encoding="utf-8")


def warnings(result: Result) -> list[str]:
    """What to know before a figure of this run is believed."""
    found = []
    if result.delay_ms and result.delay_ms["p99"] > LATE_MS:
        found.append(
            f"The generator sent late: 1 % of the calls at least {result.delay_ms['p99']:.1f} ms after "
            "they were due. Latencies have that in them; a lower rate or more generators tell it apart."
        )
    for name, series in result.processes.items():
        busiest = sorted(series.cores)[len(series.cores) // 2 :]
        if name.startswith("generator") and busiest and busiest[0] > BUSY_GENERATOR:
            found.append(
                f"The process {name} was busy for {busiest[0]:.0%} of the time: it is the limit."
            )
    if result.machine.load > result.machine.cores / 2:
        found.append(
            f"The machine had a load of {result.machine.load:g} on {result.machine.cores} cores before "
            "the run: something else ran."
        )
    return found


def render(result: Result) -> str:
    """The page."""
    title = f"{result.scenario}, {result.started_at:%Y-%m-%d %H:%M} UTC"
    head = (
        f"<header><h1>{escape(result.scenario)}</h1>"
        f"<p>{result.started_at:%Y-%m-%d %H:%M:%S} UTC, {result.seconds:g} s. {escape(result.about)} "
        f"{escape(_tool(result.tool))}</p></header>"
    )
    notes = "".join(f'<p class="warning">{escape(one)}</p>' for one in warnings(result))
    body = "".join((head, _verdict(result), notes, _tiles(result), _plots(result), _tables(result)))
    style = (files("loadtests") / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _tool(tool: str) -> str:
    if tool == "open":
        return "Open loop: each call's time counts from the moment when it was due."
    return (
        "Locust: each user waits for its answer before the next call, so waiting hides in the rate."
    )


def _verdict(result: Result) -> str:
    checked = result.agreement
    if result.agrees:
        return f'<p class="verdict good"><b>All agree.</b> {escape(summary(checked))}</p>'
    shown = "".join(f"<li>{escape(one)}</li>" for one in checked.findings)
    more = checked.findings_in_all - len(checked.findings)
    rest = f"<li>and {more:,} more</li>" if more else ""
    return (
        f'<div class="verdict bad"><b>{checked.findings_in_all:,} findings.</b> '
        f"{escape(summary(checked))}<ul>{shown}{rest}</ul></div>"
    )


def _tiles(result: Result) -> str:
    failed = sum(result.errors.values())
    tiles = [
        ("calls a second", f"{result.calls_a_second:,.0f}"),
        ("decisions a second", f"{(result.allowed + result.denied) / result.seconds:,.0f}"),
        *((SHOWN[name], _ms(result.latency_ms.get(name))) for name in ("p50", "p99", "p999")),
        ("errors", f"{failed:,}"),
        ("past a hard limit", f"{result.agreement.overuse:,}"),
    ]
    return (
        '<section class="tiles">'
        + "".join(f"<div><b>{value}</b><span>{escape(name)}</span></div>" for name, value in tiles)
        + "</section>"
    )


def _plots(result: Result) -> str:
    moments, half = result.moments, result.interval / 2
    rates = [
        Line(name, [(one.at + half, getattr(one, field)) for one in moments], colour)
        for colour, (name, field) in enumerate(
            (("allowed", "allowed"), ("denied", "denied"), ("calls", "calls"))
        )
    ]
    latencies = [
        Line(shown, [(one.at + half, one.latency_ms.get(name)) for one in moments], colour)
        for colour, (name, shown) in enumerate(SHOWN.items())
    ]
    errors = [Line("errors", [(one.at + half, one.errors) for one in moments if result.errors], 3)]
    named = sorted(result.processes.items())
    cores = [
        Line(name, list(zip(one.at, one.cores, strict=True)), place)
        for place, (name, one) in enumerate(named)
    ]
    memory = [
        Line(name, list(zip(one.at, one.megabytes, strict=True)), place)
        for place, (name, one) in enumerate(named)
    ]
    end = max(len(moments) * result.interval, *(one.at[-1] for _, one in named if one.at), 1.0)
    return "".join(
        (
            _figure(
                "Throughput", "answers and decisions a second, by when answered", "/s", rates, end
            ),
            _figure(
                "Latency", "ms on a logarithmic scale, by when due", "ms", latencies, end, log=True
            ),
            _figure("Errors", "faults a second, by when they came", "/s", errors, end),
            _figure("Processor", "cores in use by each process", "cores", cores, end),
            _figure(
                "Memory", "MB resident of each process, shared pages included", "MB", memory, end
            ),
        )
    )


def _figure(
    name: str, what: str, unit: str, series: Sequence[Line], end: float, *, log: bool = False
) -> str:
    return (
        f"<figure><figcaption><h2>{escape(name)}</h2><span>{escape(what)}; seconds since the beginning"
        f"</span></figcaption>{lines(name, unit, series, end, log=log)}{legend(series)}</figure>"
    )


def _tables(result: Result) -> str:
    calls = max(result.calls, 1)
    percentiles = [
        (SHOWN.get(name, name), _ms(value), _ms(result.delay_ms.get(name)))
        for name, value in result.latency_ms.items()
    ]
    processes = [
        (
            name,
            f"{one.seconds:.2f}",
            f"{one.seconds / calls * 1e6:,.0f}",
            f"{one.megabytes[0]:,.0f}",
            f"{max(one.megabytes):,.0f}",
            f"{one.megabytes[-1]:,.0f}",
        )
        for name, one in sorted(result.processes.items())
        if one.megabytes
    ]
    where = result.machine
    conditions = [
        ("system", where.system),
        ("cores", str(where.cores)),
        ("memory", f"{where.memory_mb:,} MB"),
        ("load before", f"{where.load:g}"),
        ("Python", where.python),
        *where.versions.items(),
        *((name, str(value)) for name, value in result.parameters.items()),
    ]
    return "".join(
        (
            '<div class="columns">',
            _table("Latency", ("", "latency", "sent late by"), percentiles),
            _table("Errors", ("fault", "calls"), [(k, f"{v:,}") for k, v in result.errors.items()]),
            "</div>",
            _table(
                "Processes",
                ("", "processor s", "µs a call", "MB first", "greatest", "last"),
                processes,
            ),
            _table("Conditions", ("", ""), conditions),
        )
    )


def _table(name: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    if not body:
        body = f'<tr><td colspan="{len(head)}">none</td></tr>'
    heads = "".join(f"<th>{escape(one)}</th>" for one in head)
    return (
        f"<section><h2>{escape(name)}</h2><table><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></section>"
    )


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g} ms" if value < THOUSAND else f"{value:,.0f} ms"
