"""Whatever happens to the lines and values of the sample catalog, `parse` reads or refuses it: it never breaks.

`enforcer/test_catalog.py` beside it invents documents; this one damages the real file as editors and merges do.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from enforcer.catalog.parse import parse
from enforcer.errors import CatalogInvalidError

SAMPLE = (Path(__file__).parents[2] / "deploy" / "sample-catalog.yaml").read_text()
LINES = [line for line in SAMPLE.splitlines() if line.strip() and not line.strip().startswith("#")]
VALUE = re.compile(r"(?<=: )[^,{}\[\]]+(?=[,}\n]|$)", re.MULTILINE)
SECONDS = 12.0
"""For all examples together: a file of this size takes 0.2 s to read."""
ODD = [
    "", "~", "yes", "-1", "1e999", ".inf", "-.inf", ".nan", "1_0", "0b1", "9007199254740993", "9" * 5_000,
    "0x" + "f" * 5_000, '"0x' + "f" * 5_000 + '"', "[0x" + "f" * 5_000 + "]", "'" + "9" * 5_000 + "s'", "1e-99999999",
    "'1e99999999999999999999'", "'0e999999'", "'1e-10'", "sNaN", "'-0'", "٣s", "1.5m", "0s", "99999999999d",
    "2026-02-30", "2026-01-31 12:00", "2026-01-31T24:00:00Z", "2026-01-31T12:00:00+99:99", "0001-01-01", "America",
    "../../etc/passwd", "''", '"\\0"', '"\\ud83d\\ude00"', '"\\ud83d"', "[]", "{}", "[[]]", "[null]", "[{}]", "{? [a] : b}",
    "!x [1]", "!x {a: 1}", "!x y", "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!binary aGk=", "!!timestamp x",
    "!!int x", "!!python/object:os.system x", "&a [*a]", "&a {b: *a}", "*nobody", "<<: 5", "{<<: [1]}", "[" * 300, "{a: " * 90,
    "|", ">-", "%", "@", "`", "# gone", "- ", "? x", "💥", "\u2028", "\x7f", "\t",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """The sample with some lines dropped, doubled, moved, or cut, and some values replaced."""
    start = draw(st.integers(0, len(LINES) - 1))
    # A part of the file is enough, and far faster: its beginning, and some lines from anywhere.
    lines = ["version: 1", *LINES[start : start + draw(st.integers(1, 40))]]
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["drop", "double", "move", "cut", "indent"])):
            case "drop" if len(lines) > 1:
                del lines[place]
            case "double":
                lines.insert(place, lines[place])
            case "move":
                lines.append(lines.pop(place))
            case "cut":
                lines[place] = lines[place][: draw(st.integers(0, len(lines[place])))]
            case _:
                lines[place] = " " * draw(st.integers(1, 4)) + lines[place]
    text = "\n".join(lines) + "\n"
    for _ in range(draw(st.integers(0, 3))):
        values = list(VALUE.finditer(text))
        if values:
            value = draw(st.sampled_from(values))
            text = text[: value.start()] + draw(st.sampled_from(ODD)) + text[value.end() :]
    return text


def refused(text: str) -> bool:
    """Whether the file was refused, with a place for each issue."""
    try:
        parse(text, "c.yaml")
    except CatalogInvalidError as error:
        said, metadata = str(error), error.metadata
    else:
        return False
    lines = said.splitlines()
    assert len(lines) == int(metadata["issues"]) > 0
    assert all(re.match(r"c\.yaml:[1-9]\d*: \S", line) for line in lines)
    assert metadata["line"] == lines[0].split(":")[1]
    return True


def test_a_damaged_sample_is_read_or_refused() -> None:
    deadline = time.monotonic() + SECONDS

    @settings(max_examples=400)
    @example(SAMPLE)
    @given(damaged())
    def search(text: str) -> None:
        if time.monotonic() < deadline:
            refused(text)

    search()


def test_no_odd_value_in_any_place_breaks_the_parser() -> None:
    """Each odd value once in a place of its own: what chance may leave out."""
    heads = [
        "accounts: [{{key: a, entitlements: [{{feature: f, model: quota, per: day, limit: {odd}}}]}}]",
        "accounts: [{{key: a, entitlements: [{{feature: f, model: {odd}}}]}}]",
        "accounts: [{{key: a, entitlements: [{{feature: f, model: concurrent, seats: 1, ttl: {odd}}}]}}]",
        "accounts: [{{key: a, entitlements: [{{feature: f, model: boolean, end: {odd}}}]}}]",
        "accounts: [{{key: a, entitlements: [{{feature: f, model: config, value: {odd}}}]}}]",
        "accounts: [{{key: a, entitlements: [{{feature: f, model: tiered, per: day, tiers: {odd}}}]}}]",
        "accounts: [{{key: a, entitlements: [{{feature: f, model: quota, limit: 1, per: day, zone: {odd}}}]}}]",
        "accounts: [{{key: a, entitlements: [{{feature: f, model: payg, per: day, spend_cap: {odd}}}]}}]",
        "products: [{{key: p, releases: {{? {odd} : 2026-01-01}}}}]",
        "accounts: {odd}",
        "features: [{odd}]",
        "{odd}: 1",
        "tenant: {odd}",
    ]
    for head in heads:
        for odd in ODD:
            refused("version: 1\n" + head.format(odd=odd) + "\n")


def test_the_whole_sample_without_any_one_line_is_read_or_refused() -> None:
    assert not refused(SAMPLE)
    found = {refused("\n".join(LINES[:place] + LINES[place + 1 :])) for place in range(0, 60, 4)}
    assert found == {True, False}
